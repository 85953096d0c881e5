# $1 run, $2 most seconds. Standard input: a job, as a tar of job.sh, what it needs, and last of all the file "complete".
# Spools it whole, then runs it detached from the connection: a cut line neither kills nor hides it. While it waits it beats.
spool=$folder/incoming/$1.$$
# Its sleep holds no descriptor: the connection would not end before it.
(while echo 'tma beat'; do sleep 2 <&- >&- 2>&-; done) 2>/dev/null &
beat=$!
trap 'kill $beat 2>/dev/null' EXIT
# -o: owned by whoever unpacks. -p: the modes of the archive, whatever the umask or the folder's ACL.
# A folder that is there is somebody else's, or what a power cut has left of a process with our number.
make_spool() {
    umask 077
    [ -d "$folder/incoming" ] || mkdir -p "$folder/incoming" || return 1
    mkdir "$spool" 2>/dev/null || { rm -rf "$spool" && mkdir "$spool"; } || return 1
    umask 022
}
if ! make_spool || ! tar -xpof - -C "$spool" || [ ! -f "$spool/complete" ]; then
    say_if_full "$folder/.tma-room" >&2
    # On a full disk the next job, which may be the way back, finds room at least for itself.
    rm -rf "$spool" "$folder/.tma-reserve"
    exit 95
fi
detached=nohup
if command -v setsid >/dev/null 2>&1; then detached=setsid; fi
bounded=
if command -v timeout >/dev/null 2>&1; then bounded="timeout -k 10 $2"; fi
# shellcheck disable=SC2086 # words, not one
LC_ALL=$tma_locale $detached $bounded sh "$spool/job.sh" "$folder" "$spool" </dev/null &
wait $!
