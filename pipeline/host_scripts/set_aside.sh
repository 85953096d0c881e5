# $1 release, $2 run. Moves a release that is not current, and not what it should be, out of the way; keeps it.
[ "$(readlink "$folder/current" 2>/dev/null)" != "releases/$1" ] || refuse "releases/$1 is current"
mkdir -p "$folder/backups/$2/releases"
target=$folder/backups/$2/releases/$1
number=1
while [ -e "$target" ]; do
    number=$((number + 1))
    target=$folder/backups/$2/releases/$1.$number
done
replace "$folder/releases/$1" "$target"
durable "$folder/releases" "$folder/backups/$2/releases"
