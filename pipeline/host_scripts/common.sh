# Begins every script: "$1" is the host's folder, the rest is the script's own. Exit code 91: refused, the reasons are
# the lines of standard error. POSIX sh; find, awk, tar, sha256sum and the others of inspect.sh as in GNU or busybox.
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

# Says so when the disk has no room for so much as 64 KiB, tried with the file "$1": a full disk loses messages as well.
say_if_full() {
    dd if=/dev/zero of="$1" bs=65536 count=1 2>/dev/null || echo 'No space left on the disk, or almost none'
    rm -f "$1"
}
