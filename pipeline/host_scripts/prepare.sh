# Makes the folders; what is there stays.
for name in '' releases shared journal backups incoming; do
    mkdir -p "$folder/$name"
done
chmod 0700 "$folder/backups" "$folder/incoming"
durable "$folder"
