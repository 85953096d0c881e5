# What lies below a folder, and how it differs from what should. A line an entry, sorted by bytes:
#
#     MODE SHA256  ./PATH<tab>STAT
#
# MODE as in Git; a link's SHA-256 is that of its target; STAT is type and permissions (hexadecimal), size, mtime and inode.
# Folders count only when they are empty, as Git does not know them. What is no part of a release has a word in the place
# of MODE: mode (permissions that Git does not have), folder, other (a device, a pipe, a socket), unreadable. A name with a
# line break, a tab, a carriage return or a backslash is written as x:HEX, since tools differ in how they print it. Nothing
# is followed.

tma_odd=$(printf '*[\\\\\n\t\r]*')

# One entry a name that cannot stand in a line; "inside" tells of the folder that it fills.
tma_odd_names='for name do
    hex=$(printf %s "${name#./}" | od -An -v -tx1 | tr -d " \n")
    above=${name%/*}
    mode=other hash=-
    if [ -L "$name" ]; then
        mode=120000 target=$(readlink "$name"; echo .)
        target=${target%.}
        hash=$(printf %s "${target%?}" | sha256sum)
    elif [ -d "$name" ]; then
        mode=folder
        [ -r "$name" ] && [ -x "$name" ] || mode=unreadable
        [ -z "$(ls -A "$name" 2>/dev/null)" ] || mode=
    elif [ -f "$name" ]; then
        case $(stat -c %f "$name") in 81a4) mode=100644 ;; 81ed) mode=100755 ;; *) mode=mode ;; esac
        hash=$(sha256sum <"$name") || mode=unreadable hash=-
    fi
    [ -z "$mode" ] || printf "odd %s %s  x:%s\t-\n" "$mode" "${hash%% *}" "$hex"
    printf "%s" "$above" | awk "NR > 1 || /[\\\\\\\\\t\r]/ { odd = 1 } { all = all \$0 } END { if (!odd) print \"inside \" all }"
done'

# What find and stat say of FOLDER, a line an entry: "TYPE-AND-PERMISSIONS SIZE MTIME INODE PATH", and the lines of odd names,
# which begin with a word. A folder comes right before what lies in it.
look() {
    cd "$1" &&
        find . -path "$tma_odd" -exec sh -c "$tma_odd_names" sh {} + -o -exec stat -c '%f %s %Y %i %n' {} + ||
        echo 'it ended badly' >&2
}

# For awk: a folder that is not followed by what lies in it is hollow; only an odd name may still be inside.
tma_hollow='
    function path_in(line) {
        match(line, /^[^ ]* [^ ]* [^ ]* [^ ]* /)
        return substr(line, RLENGTH + 1)
    }
    /^inside / { full[substr($0, 8)] = 1; next }
    folder != "" && !/^odd / {
        if (substr(path_in($0), 1, length(folder) + 1) != folder "/") hollow[folder] = 1
        folder = ""
    }
'

# survey FOLDER OUT [BASE]: writes the entries of FOLDER into the file OUT. What has the STAT that it has in the file BASE,
# an earlier OUT, is not read again. OUT.* are work space, and stay.
survey() {
    find_in=$1 into=$2
    : >"$into.files" >"$into.names" >"$into.links" >"$into.empty"
    look "$find_in" 2>"$into.trouble" | tma_base=${3:-/dev/null} tma_into=$into awk "$tma_hollow"'
        BEGIN {
            # By the whole line that look prints for it: most lines need no more than to be found here.
            while ((getline line < ENVIRON["tma_base"]) > 0) {
                tab = index(line, "\t")
                path = index(line, "  ") + 2
                known[substr(line, tab + 1) " " substr(line, path, tab - path)] = line
            }
            into = ENVIRON["tma_into"]
        }
        $0 in known { print known[$0]; next }
        $1 == "odd" { print substr($0, 5); next }
        {
            path = path_in($0)
            now = substr($0, 1, length($0) - length(path) - 1)
            kind = substr($1, 1, 1)
            if (length($1) != 4 || kind !~ /[48a]/) print "other -  " path "\t" now
            else if (kind == "4") folder = path
            else if (kind == "a") print $0 > (into ".links")
            else { print $0 > (into ".files"); print path > (into ".names") }
        }
        END {
            if (folder != "") hollow[folder] = 1
            for (path in hollow) if (path != "." && !(path in full)) print path > (into ".empty")
        }
    ' >"$into.known"
    if [ -s "$into.files" ]; then
        hash_names 2>>"$into.trouble" | tma_into=$into awk '
            BEGIN {
                while ((getline line < (ENVIRON["tma_into"] ".files")) > 0) {
                    match(line, /^[^ ]* [^ ]* [^ ]* [^ ]* /)
                    now[substr(line, RLENGTH + 1)] = substr(line, 1, RLENGTH - 1)
                }
            }
            {
                path = substr($0, 67)
                if (!(path in now)) next
                mode = substr(now[path], 1, 4)
                print (mode == "81a4" ? "100644" : mode == "81ed" ? "100755" : "mode") " " $1 "  " path "\t" now[path]
                delete now[path]
            }
            END { for (path in now) print "unreadable -  " path "\t-" }
        ' >>"$into.known"
    fi
    while IFS= read -r path; do
        # What looks empty may only be closed to us.
        if [ -r "$find_in/$path" ] && [ -x "$find_in/$path" ]; then mode=folder; else mode=unreadable; fi
        printf '%s -  %s\t-\n' "$mode" "$path"
    done <"$into.empty" >>"$into.known"
    while IFS= read -r line; do
        path=${line#* * * * }
        linked=$(cd "$find_in" && readlink "$path"; echo .)
        linked=${linked%.}
        hash=$(printf %s "${linked%?}" | sha256sum)
        printf '120000 %s  %s\t%s\n' "${hash%% *}" "$path" "${line%" $path"}"
    done <"$into.links" >>"$into.known"
    # Only where nothing else says it: a file that is not ours to read was named already.
    if [ -s "$into.trouble" ] && ! grep -q '^unreadable' "$into.known"; then
        printf 'unreadable -  .\t-\n' >>"$into.known"
    fi
    sort "$into.known" >"$into"
}

# The SHA-256 of the files in "$into.names" below "$find_in", as sha256sum prints them.
hash_names() {
    cd "$find_in"
    set --
    while IFS= read -r path; do
        set -- "$@" "$path"
        # So few are words for one program, without others to hand them over.
        [ $# -lt 100 ] || break
    done <"$into.names"
    if [ $# -lt 100 ]; then exec sha256sum "$@"; fi
    hash=sha256sum
    # Many times as fast where it knows the processor's own instructions, which most builds of sha256sum do not.
    case $(openssl dgst -sha256 -r /dev/null 2>/dev/null) in
    'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 *'*) hash='openssl dgst -sha256 -r' ;;
    esac
    # shellcheck disable=SC2086 # words, not one
    tr '\n' '\0' <"$into.names" | xargs -0 $hash
}

# Sets digest to the SHA-256 over the entries of the survey "$1" without their STAT: of the release's whole list.
survey_digest() {
    digest=$(cut -f 1 "$1" | sha256sum)
    digest=${digest%% *}
}

# Sets digest like survey_digest of the file LIST when FOLDER is still as LIST says, by STAT; odd names are read. Else it
# fails, which may also only mean that this takes a survey.
unchanged() {
    # What went wrong is one line too many. No line stands for two.
    digest=$(look "$1" 2>&1 | tma_list=$2 awk "$tma_hollow"'
        BEGIN {
            while ((getline line < ENVIRON["tma_list"]) > 0) {
                tab = index(line, "\t")
                path = index(line, "  ") + 2
                now = substr(line, tab + 1)
                left[now == "-" ? "odd " line : now " " substr(line, path, tab - path)] = 1
                entry[++entries] = substr(line, 1, tab - 1)
            }
        }
        $0 in left { delete left[$0]; found++; next }
        /^4[^ ][^ ][^ ] / { folder = path_in($0); next }
        { differs = 1 }
        END {
            if (folder != "") hollow[folder] = 1
            for (path in hollow) if (path != "." && !(path in full)) differs = 1
            if (differs || found != entries) exit
            print "unchanged"
            for (number = 1; number <= entries; number++) print entry[number]
        }
    ' | { IFS= read -r said && [ "$said" = unchanged ] && exec sha256sum; }) || return 1
    digest=${digest%% *}
}

# Prints how the survey "$2" differs from the lines that the file "$1" expects (without STAT): "< " expected, "> " found.
differences() {
    awk -F '\t' '
        FILENAME == ARGV[1] { expected[$1] = 1; next }
        $1 in expected { delete expected[$1]; next }
        { print "> " $1 }
        END { for (line in expected) print "< " line }
    ' "$1" "$2"
}
