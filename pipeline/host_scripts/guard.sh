# $1 folder, $2 fence, $3 a script, the rest its arguments: runs it with the host's lock held, unless a later run has taken
# over (94) or another step does not end (96). Prints nothing of its own.
folder=$1 fence=$2 script=$3
shift 3
if command -v flock >/dev/null 2>&1; then
    mkdir -p "$folder"
    exec 9>>"$folder/.tma-lock"
    left=120
    until flock -n 9; do
        [ "$left" -gt 0 ] || exit 96
        left=$((left - 1))
        sleep 1
    done
fi
newest=
for entry in "$folder"/journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json; do newest=$entry; done
if [ -e "$newest" ]; then
    IFS= read -r entry <"$newest" || :
    seen=${entry#*\"fence\":}
    [ "${seen%%,*}" -le "$fence" ] || exit 94
fi
exec sh -c "$script" sh "$@"
