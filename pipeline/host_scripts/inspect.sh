# Prints facts, one "name value" a line; changes nothing.
tma_breaks=$(printf '*[\n\t]*')
say() {
    # shellcheck disable=SC2254 # a pattern
    case $* in
    $tma_breaks) printf '%s' "$*" | tr '\n\t' '??' && echo ;;
    *) printf '%s\n' "$*" ;;
    esac
}

echo "now $(date -u +%s)"
echo "user $(id -un 2>/dev/null || id -u)"
for tool in awk cp cut date find head ln mktemp mv od readlink sed sha256sum sort stat sync tail tar tr xargs; do
    command -v "$tool" >/dev/null 2>&1 || echo "missing $tool"
done
case $(mv -T 2>&1) in
*'invalid option'* | *'illegal option'* | *'unrecognized option'*) echo 'missing mv -T' ;;
esac
# What protects us and is not everywhere, with what is done where it is not.
[ -n "$tma_flock" ] ||
    echo 'substitute there is no flock: links take its place; they do not see what a killed step has left running'
command -v setsid >/dev/null 2>&1 ||
    echo 'substitute there is no setsid: nohup keeps a step running when the connection is lost'
command -v timeout >/dev/null 2>&1 ||
    echo 'substitute there is no timeout: a command that does not end holds the deployment until it is stopped by hand'
if command -v selinuxenabled >/dev/null 2>&1 && selinuxenabled; then
    if command -v restorecon >/dev/null 2>&1; then
        echo 'substitute SELinux is on: the files of a release get their labels by restorecon'
    else
        echo 'missing restorecon'
    fi
fi

# The folder that exists already, for the free space.
above=$folder
while [ ! -d "$above" ]; do above=$(dirname "$above"); done
[ -w "$above" ] || echo 'unwritable'
if free=$(stat -f -c '%a %S %b %d %c' "$above" 2>/dev/null); then
    echo "free $free"
else
    echo "df_kilobytes $(df -Pk "$above" 2>/dev/null | sed -n '$p')"
    echo "df_inodes $(df -Pi "$above" 2>/dev/null | sed -n '$p')"
fi

if [ ! -e "$folder" ] && [ ! -L "$folder" ]; then exit 0; fi
echo 'exists'
if [ ! -d "$folder" ]; then
    say "foreign $folder is not a folder"
    exit 0
fi
cd "$folder"
serving=
# The newest entry and the one before. Numbers are counted without starting a program for each: an entry stays for good.
last=
before=
damage=
count=0
for entry in journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json; do
    [ -e "$entry" ] || [ -L "$entry" ] || continue
    before=$last
    last=$entry
    count=$((count + 1))
    number=${entry#journal/}
    number=1${number%%-*}
    if [ -n "$damage" ]; then
        :
    elif [ -L "$entry" ] || [ ! -f "$entry" ]; then
        damage="$entry is not a file"
    elif [ "$((number - 1000000))" -ne "$count" ]; then
        damage="entry $count was expected where $entry is"
    fi
done
if [ -d journal ] && { [ ! -r journal ] || [ ! -x journal ]; }; then
    damage='journal cannot be read by us'
fi
for name in * .[!.]* ..?*; do
    [ -e "$name" ] || [ -L "$name" ] || continue
    case $name in
    releases | shared | journal | backups | incoming | lists)
        if [ -L "$name" ] || [ ! -d "$name" ]; then
            say "foreign $name is not a folder"
        elif [ -z "$last" ] && [ "$name" != incoming ] && [ "$name" != backups ] && [ -n "$(ls -A "$name")" ]; then
            say "foreign $name holds $(ls -A "$name" | sed -n 1p), and there is no deployment journal"
        fi
        ;;
    current)
        if [ ! -L current ]; then
            echo 'foreign current is not a symbolic link'
        else
            target=$(readlink current)
            serving=${target#releases/}
            case $target in
            releases/*/* | releases/ | releases/. | releases/..) say "foreign current points to $target" ;;
            releases/*)
                if [ -z "$last" ]; then
                    say "foreign current points to $target, and there is no deployment journal"
                elif [ ! -d "$target" ]; then
                    say "foreign current points to $target, which does not exist"
                fi
                say "current $serving"
                ;;
            *) say "foreign current points to $target" ;;
            esac
        fi
        ;;
    .tma-*) ;; # a temporary name of ours that a crash left behind
    *) say "other $name" ;;
    esac
done
if [ -d releases ] && [ ! -L releases ]; then
    for name in releases/* releases/.[!.]*; do
        [ -e "$name" ] || [ -L "$name" ] || continue
        if [ -L "$name" ] || [ ! -d "$name" ]; then
            say "foreign $name is not a folder"
        else
            say "release ${name#releases/}"
        fi
    done
fi
if [ -d journal ] && [ ! -L journal ]; then
    for name in journal/* journal/.[!.]*; do
        [ -e "$name" ] || [ -L "$name" ] || continue
        case $name in
        journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json) ;;
        *) say "foreign $name is no entry of a deployment journal" ;;
        esac
    done
fi
if [ -n "$last" ] && [ -z "$damage" ]; then
    # What the shell loses of it, a last line break or a NUL, shows in the hash.
    entry=$(head -c 65537 "$last" 2>/dev/null) || damage="$last cannot be read by us"
    if [ -n "$damage" ]; then
        :
    elif [ "${#entry}" -gt 65536 ]; then
        damage="$last is too large for an entry"
    elif ! hashes=$(sha256sum "$last" ${before:+"$before"} 2>/dev/null); then
        damage="$last or the entry before cannot be read by us"
    else
        say "journal ${last#journal/} ${hashes%% *}"
        say "journal_entry $entry"
        if [ -n "$before" ]; then
            hashes=${hashes#*
}
            echo "journal_previous ${hashes%% *}"
        fi
    fi
fi
[ -z "$damage" ] || say "journal_damage $damage"

# The release that serves against the list that was verified last: what has the same size, date, mode and inode is not read.
if [ -n "$serving" ] && [ -f "lists/$serving" ] && [ -d "releases/$serving" ]; then
    if ! unchanged "$folder/releases/$serving" "$folder/lists/$serving"; then
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        survey "$folder/releases/$serving" "$scratch/found" "$folder/lists/$serving"
        cut -f 1 "lists/$serving" >"$scratch/expected"
        differences "$scratch/expected" "$scratch/found" | sed 's/^/drift /'
        survey_digest "$scratch/found"
    fi
    echo 'compared'
    echo "list $digest"
fi
