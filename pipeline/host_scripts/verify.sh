# $1 release. Standard input: the expected lines of its survey. Prints the differences; "absent" when there is no such folder.
if [ -L "$folder/releases/$1" ] || [ ! -d "$folder/releases/$1" ]; then
    echo 'absent'
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/expected"
survey "$folder/releases/$1" "$scratch/found"
differences "$scratch/expected" "$scratch/found"
