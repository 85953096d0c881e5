# Prints the journal as a tar; nothing when there is none.
[ -d "$folder/journal" ] || exit 0
# Not while an entry is being added: tar complains about a folder that changes under it.
exec 9<"$folder/journal"
flock -s 9
exec tar -cf - -C "$folder" journal
