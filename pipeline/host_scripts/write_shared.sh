# $1 run. Standard input: a tar of "files/…". Each file replaces the one in shared/ atomically, mode 0600. What was there
# before is kept under backups/<run>/shared, or its absence noted under backups/<run>/shared.absent; the first time only,
# so that doing it again after a crash does not keep our own file as the one before.
incoming=$folder/incoming/$1.shared
saved=$folder/backups/$1/shared
absent=$folder/backups/$1/shared.absent
umask 077
rm -rf "$incoming"
mkdir -p "$incoming/files" "$saved" "$absent"
tar -xpof - -C "$incoming"
cd "$incoming/files"
find . -type f | sed 's,^\./,,' >"$incoming/names"

# All is judged before anything is written.
while IFS= read -r name; do
    place=$folder/shared/$name
    if [ -L "$place" ]; then refuse "shared/$name is a symbolic link, which we did not make"; fi
    if [ -e "$place" ] && [ ! -f "$place" ]; then refuse "shared/$name is not a file"; fi
    rest=$name above=$folder/shared
    while [ "${rest#*/}" != "$rest" ]; do
        above=$above/${rest%%/*}
        rest=${rest#*/}
        if [ -L "$above" ]; then refuse "$above is a symbolic link, which we did not make"; fi
        if [ -e "$above" ] && [ ! -d "$above" ]; then refuse "$above is not a folder"; fi
    done
done <"$incoming/names"

while IFS= read -r name; do
    place=$folder/shared/$name
    if [ ! -e "$saved/$name" ] && [ ! -e "$absent/$name" ]; then
        if [ -e "$place" ]; then
            mkdir -p "$(dirname "$saved/$name")"
            cp -p "$place" "$saved/$name.tma-new"
            durable "$saved/$name.tma-new"
            replace "$saved/$name.tma-new" "$saved/$name"
        else
            mkdir -p "$(dirname "$absent/$name")"
            : >"$absent/$name"
        fi
    fi
done <"$incoming/names"
durable_all "$saved"

while IFS= read -r name; do
    place=$folder/shared/$name
    (umask 022 && mkdir -p "$(dirname "$place")")
    chmod 0600 "$name"
    durable "$name"
    replace "$name" "$place"
    durable "$(dirname "$place")"
done <"$incoming/names"
rm -rf "$incoming"
