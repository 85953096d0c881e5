# $1 release, $2 run. Standard input: a tar of "manifest" (the expected listing) and "tree/…". The whole is unpacked and
# compared aside; only an exact copy gets the release's name. Prints the differences and ends with 92 when it is not.
release=$1
incoming=$folder/incoming/$2
[ ! -e "$folder/releases/$release" ] || refuse "releases/$release is there already"
rm -rf "$incoming"
mkdir -p "$incoming/tree"
# -o: owned by whoever unpacks. -p: the modes of the archive, whatever the umask or the folder's ACL.
tar -xpof - -C "$incoming"
differences "$incoming/tree" "$incoming/manifest" "$incoming/found" >"$incoming/differences"
if [ -s "$incoming/differences" ]; then
    cat "$incoming/differences"
    rm -rf "$incoming"
    exit 92
fi
chmod 0755 "$incoming/tree"
# The files must be on the disk before the name is: a power cut must not leave a release of empty files.
durable_all "$incoming"
replace "$incoming/tree" "$folder/releases/$release"
durable "$folder/releases"
rm -rf "$incoming"
