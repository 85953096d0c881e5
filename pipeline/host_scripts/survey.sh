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

# survey FOLDER OUT [BASE]: writes the entries of FOLDER into the file OUT. What has the STAT that it has in the file BASE,
# an earlier OUT, is not read again. OUT.* are work space, and stay.
survey() {
    find_in=$1 into=$2 base=${3:-/dev/null}
    (cd "$find_in" && find . -path "$tma_odd" -exec sh -c "$tma_odd_names" sh {} + -o -exec stat -c '%f %s %Y %i %n' {} +) \
        >"$into.found" 2>"$into.trouble" || echo 'it ended badly' >>"$into.trouble"
    : >"$into.files" >"$into.links" >"$into.empty"
    awk -v base="$base" -v files="$into.files" -v names="$into.names" -v links="$into.links" -v empty="$into.empty" '
        BEGIN {
            while ((getline line < base) > 0) {
                tab = index(line, "\t")
                path = substr(line, 1, tab - 1)
                sub(/^[^ ]* [^ ]*  /, "", path)
                known[path] = line
            }
        }
        $1 == "odd" { print substr($0, 5); next }
        $1 == "inside" { full[substr($0, 8)] = 1; next }
        {
            path = substr($0, length($1) + length($2) + length($3) + length($4) + 5)
            now = $1 " " $2 " " $3 " " $4
            above = path
            sub(/\/[^\/]*$/, "", above)
            full[above] = 1
            kind = substr($1, 1, 1)
            if (length($1) != 4 || kind !~ /[48a]/) print "other -  " path "\t" now
            else if (kind == "4") folders[path] = 1
            else if (path in known && substr(known[path], index(known[path], "\t") + 1) == now) print known[path]
            else if (kind == "a") print path > links
            else { print now " " path > files; print path > names }
        }
        END { for (path in folders) if (path != "." && !(path in full)) print path > empty }
    ' "$into.found" >"$into.known"
    : >"$into.hashed"
    if [ -s "$into.files" ]; then
        tr '\n' '\0' <"$into.names" |
            (cd "$find_in" && xargs -0 sha256sum) >"$into.hashed" 2>>"$into.trouble" || :
        awk '
            FILENAME == ARGV[1] { hash[substr($0, 67)] = $1; next }
            {
                now = $1 " " $2 " " $3 " " $4
                path = substr($0, length(now) + 2)
                if (!(path in hash)) print "unreadable -  " path "\t-"
                else print ($1 == "81a4" ? "100644" : $1 == "81ed" ? "100755" : "mode") " " hash[path] "  " path "\t" now
            }
        ' "$into.hashed" "$into.files" >>"$into.known"
    fi
    while IFS= read -r path; do
        # What looks empty may only be closed to us.
        if [ -r "$find_in/$path" ] && [ -x "$find_in/$path" ]; then mode=folder; else mode=unreadable; fi
        printf '%s -  %s\t-\n' "$mode" "$path"
    done <"$into.empty" >>"$into.known"
    while IFS= read -r path; do
        linked=$(cd "$find_in" && readlink "$path"; echo .)
        linked=${linked%.}
        hash=$(printf %s "${linked%?}" | sha256sum)
        now=$(cd "$find_in" && stat -c '%f %s %Y %i' "$path")
        printf '120000 %s  %s\t%s\n' "${hash%% *}" "$path" "$now"
    done <"$into.links" >>"$into.known"
    # Only where nothing else says it: a file that is not ours to read was named already.
    if [ -s "$into.trouble" ] && ! grep -q '^unreadable' "$into.known"; then
        printf 'unreadable -  .\t-\n' >>"$into.known"
    fi
    sort "$into.known" >"$into"
}

# The SHA-256 over the entries of the survey "$1" without their STAT: of the release's whole list.
survey_digest() {
    hash=$(cut -f 1 "$1" | sha256sum)
    echo "${hash%% *}"
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
