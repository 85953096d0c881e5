# $1 name of the entry, $2 name of the entry before or empty. Standard input: its bytes. An entry is never overwritten,
# and its name appears only with all of its bytes; ends with 93 when somebody else was first.
mkdir -p "$folder/journal" "$folder/incoming"
temporary=$folder/incoming/.tma-$1-$$
trap 'rm -f "$temporary"' EXIT
cat >"$temporary"
chmod 0444 "$temporary"
durable "$temporary"
# Two entries of one number would have two names, so that ln alone does not tell them apart.
lock_journal
cd "$folder/journal"
last=
for entry in [0-9][0-9][0-9][0-9][0-9][0-9]-*.json; do
    [ ! -e "$entry" ] || last=$entry
done
if [ "$last" != "$2" ]; then
    unlock_journal
    exit 93
fi
ln "$temporary" "$1"
durable .
unlock_journal
