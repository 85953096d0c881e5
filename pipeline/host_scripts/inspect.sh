# Prints facts, one "name value" a line; changes nothing.
say() {
    printf '%s' "$*" | tr '\n\t' '??'
    echo
}

echo "now $(date -u +%s)"
echo "user $(id -un 2>/dev/null || id -u)"
for tool in tar sha256sum find sort comm sed ln readlink df sync cp date mktemp flock tr; do
    command -v "$tool" >/dev/null 2>&1 || echo "missing $tool"
done
if mv -T 2>&1 | grep -q 'invalid option\|illegal option\|unrecognized option'; then
    echo 'missing mv -T'
fi

# The folder that exists already, for the free space.
above=$folder
while [ ! -d "$above" ]; do above=$(dirname "$above"); done
[ -w "$above" ] || echo 'unwritable'
echo "df_kilobytes $(df -Pk "$above" 2>/dev/null | sed -n '$p')"
echo "df_inodes $(df -Pi "$above" 2>/dev/null | sed -n '$p')"

if [ ! -e "$folder" ] && [ ! -L "$folder" ]; then exit 0; fi
echo 'exists'
if [ ! -d "$folder" ]; then
    say "foreign $folder is not a folder"
    exit 0
fi
cd "$folder"
last=
for entry in journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json; do
    [ ! -f "$entry" ] || last=$entry
done
for name in * .[!.]* ..?*; do
    [ -e "$name" ] || [ -L "$name" ] || continue
    case $name in
    releases | shared | journal | backups | incoming)
        if [ -L "$name" ] || [ ! -d "$name" ]; then
            say "foreign $name is not a folder"
        elif [ -z "$last" ] && [ -n "$(ls -A "$name")" ]; then
            say "foreign $name holds $(ls -A "$name" | sed -n 1p), and there is no deployment journal"
        fi
        ;;
    current)
        if [ ! -L current ]; then
            echo 'foreign current is not a symbolic link'
        else
            target=$(readlink current)
            case $target in
            releases/*/* | releases/ | releases/. | releases/..) say "foreign current points to $target" ;;
            releases/*)
                if [ -z "$last" ]; then
                    say "foreign current points to $target, and there is no deployment journal"
                elif [ ! -d "$target" ]; then
                    say "foreign current points to $target, which does not exist"
                fi
                say "current ${target#releases/}"
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
if [ -n "$last" ]; then
    hash=$(sha256sum "$last")
    echo "journal ${last#journal/} ${hash%% *}"
fi
