# $1 name of the entry, $2 name of the entry before or empty. Standard input: its bytes. An entry is never overwritten,
# and its name appears only with all of its bytes; ends with 93 when somebody else was first.
temporary=$folder/incoming/.tma-$1-$$
trap 'rm -f "$temporary"' EXIT
cat >"$temporary"
chmod 0444 "$temporary"
durable "$temporary"
cd "$folder/journal"
# Two entries of one number would have two names, so that ln alone does not tell them apart.
exec 9<.
flock 9
last=
for entry in [0-9][0-9][0-9][0-9][0-9][0-9]-*.json; do
    [ ! -e "$entry" ] || last=$entry
done
[ "$last" = "$2" ] || exit 93
ln "$temporary" "$1"
durable .
