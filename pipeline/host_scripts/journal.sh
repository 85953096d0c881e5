# Prints the journal as a tar; nothing when there is none.
[ -d "$folder/journal" ] || exit 0
# Not while an entry is being added: tar complains about a folder that changes under it.
lock_journal
set +e
tar -cf - -C "$folder" journal
code=$?
unlock_journal
exit "$code"
