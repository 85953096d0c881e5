# $1 folder to start in, below the host's folder; the rest: program and arguments. Standard input: the environment, for
# each variable a line with its name, a line with the number of its lines, and these; arguments would show in ps.
cd "$folder/$1"
shift
if [ -n "$tma_locale" ]; then LC_ALL=$tma_locale; else unset LC_ALL; fi
# The names begin with tma_ so that they are not among the variables that are set.
while IFS= read -r tma_name; do
    IFS= read -r tma_count
    IFS= read -r tma_value
    while [ "$tma_count" -gt 1 ]; do
        IFS= read -r tma_line
        tma_value="$tma_value
$tma_line"
        tma_count=$((tma_count - 1))
    done
    export "$tma_name=$tma_value"
done
exec "$@" </dev/null
