# $1 folder, $2 fence, $3 a script, the rest its arguments: runs it with the host's lock held, unless a later run has taken
# over (94) or another step does not end (96). Prints nothing of its own. locks.sh comes before it.
folder=$1 fence=$2 script=$3
shift 3
mask=$(umask)
[ -d "$folder" ] || mkdir -p "$folder"
lock_steps 120 || exit 96
umask "$mask"
newest=
for entry in "$folder"/journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json; do newest=$entry; done
if [ -e "$newest" ]; then
    IFS= read -r entry <"$newest" || :
    seen=${entry#*\"fence\":}
    [ "${seen%%,*}" -le "$fence" ] || exit 94
fi
# The kernel lets go of its lock when the script has ended; a link must be given back.
[ -z "$tma_flock" ] || exec sh -c "$script" sh "$@"
sh -c "$script" sh "$@"
code=$?
unlock_steps
exit "$code"
