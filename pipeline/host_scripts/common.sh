# Begins every script: "$1" is the host's folder, the rest is the script's own. Exit code 91: refused, the reasons are
# the lines of standard error. POSIX sh; find, tar, sha256sum and the others of inspect.sh as in GNU or busybox.
set -eu
umask 022
tma_locale=${LC_ALL-}
LC_ALL=C
export LC_ALL
folder=$1
shift
# A login shell may print what it likes before us: what counts begins after this line.
echo 'tma-pipeline:begin'

refuse() {
    printf '%s\n' "$@" >&2
    exit 91
}

# Makes files or folders durable; an older sync takes no names and flushes everything.
durable() {
    sync "$@" 2>/dev/null || sync
}

# As durable, for everything on the file system that holds "$1".
durable_all() {
    sync -f "$1" 2>/dev/null || sync
}

# Renames over what is there, never into it. Atomic: rename(2).
replace() {
    mv -fT "$1" "$2"
}

# Every file below the current folder as "MODE SHA256  ./PATH", sorted. A link's SHA-256 is that of its target. Folders
# count only when they are empty, as Git does not know them. Nothing is followed. What cannot be read is listed as
# "unreadable": sha256sum and find leave it out, so the names are listed first. "$1" and "$2" are work space.
listing() {
    searched=yes
    find . -type f -print >"$1.all" 2>/dev/null || searched=
    hashes >"$1" 2>/dev/null || :
    sort "$1.all" >"$2"
    sed 's/^[^ ]* [^ ]*  //' "$1" | sort | comm -13 - "$2" | sed 's/^/unreadable -  /' >>"$1"
    # Only where nothing else says it: a folder that is not ours to read was named already.
    [ -n "$searched" ] || grep -q '^unreadable' "$1" || echo 'unreadable -  .' >>"$1"
    sort "$1"
    rm -f "$1" "$1.all" "$2"
}

# One find that may not look somewhere must not keep the others from being asked: called where errors are passed over.
hashes() {
    if [ -n "$(find . -name '*
*' -print)" ]; then
        echo 'other -  a name with a line break'
    fi
    find . -type f -perm 0644 -exec sha256sum {} + | sed 's/^/100644 /'
    find . -type f -perm 0755 -exec sha256sum {} + | sed 's/^/100755 /'
    find . -type f ! -perm 0644 ! -perm 0755 -exec sha256sum {} + | sed 's/^/mode /'
    find . -type l -exec sh -c 'for link do
        target=$(readlink "$link"; echo .)
        target=${target%.}
        hash=$(printf %s "${target%?}" | sha256sum)
        printf "120000 %s  %s\n" "${hash%% *}" "$link"
    done' sh {} +
    find . -type d -exec sh -c 'for dir do
        if [ ! -r "$dir" ] || [ ! -x "$dir" ]; then
            printf "unreadable -  %s\n" "$dir"
        elif [ "$dir" != . ] && [ -z "$(ls -A "$dir")" ]; then
            printf "folder -  %s\n" "$dir"
        fi
    done' sh {} +
    find . ! -type f ! -type l ! -type d -exec printf 'other -  %s\n' {} +
}

# Prints how the folder "$1" differs from the listing in the file "$2": "< " expected, "> " found. Needs work space "$3".
differences() {
    (cd "$1" && listing "$3.hashes" "$3.names") >"$3"
    comm -23 "$2" "$3" | sed 's/^/< /'
    comm -13 "$2" "$3" | sed 's/^/> /'
    rm -f "$3"
}
