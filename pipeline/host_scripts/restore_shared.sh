# $1 run. Puts shared/ back to what it was before this run wrote to it; may be done again.
saved=$folder/backups/$1/shared
absent=$folder/backups/$1/shared.absent
if [ -d "$saved" ]; then
    cd "$saved"
    find . -type f ! -name '*.tma-new' | while IFS= read -r name; do
        place=$folder/shared/$name
        mkdir -p "$(dirname "$place")"
        cp -p "$name" "$place.tma-new"
        durable "$place.tma-new"
        replace "$place.tma-new" "$place"
    done
fi
if [ -d "$absent" ]; then
    cd "$absent"
    find . -type f | while IFS= read -r name; do rm -f "$folder/shared/$name"; done
fi
durable_all "$folder"
