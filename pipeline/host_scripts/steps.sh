# What a job is made of: begin, then a line a step, then finish. What is done is in the journal, and is not done again; each
# step is written down before it is begun and after it has ended, and asks first whether a later run has taken over.
#
# The job's first lines set: run, fence, record, direction (step or back), limit, and the parts of an entry that are the same
# in all of its entries, entry_head and entry_tail.

# The line may be cut: what we say is then lost, and nothing else.
trap '' PIPE
say() {
    # Not echo: dash's makes a new line of a backslash and an n, which could then pass for ours.
    printf 'tma %s\n' "$*" 2>/dev/null || :
}

# --- the time -----------------------------------------------------------------------------------------------------------

# Sets ticks to hundredths of a second since some moment in the past, without starting a program where that is possible.
read_ticks() {
    up=
    { IFS=' .' read -r up hundredths more </proc/uptime; } 2>/dev/null || :
    case $up in
    '' | *[!0-9]*) ticks=$(($(date +%s) * 100)) && return 0 ;;
    esac
    case $hundredths in [0-9][0-9]) ;; *) hundredths=00 ;; esac
    ticks=$((up * 100 + 1$hundredths - 100))
}

asked=
# Sets moment to the time as in 2026-11-22T20:00:00Z. date is asked once a minute; until that is over, what has gone by is
# added to its seconds. So it is never ahead of what date would say, and a second behind at most; and there is nothing to
# know of hours, days and leap years.
read_moment() {
    read_ticks
    if [ -n "$asked" ]; then
        second=${asked%Z}
        second=$((1${second##*:} - 100 + (ticks - asked_ticks) / 100))
        # Where the ticks stand still, they are no measure.
        if [ "$second" -lt 60 ] && [ "$ticks" -gt "$asked_ticks" ]; then
            [ "$second" -ge 10 ] || second=0$second
            moment=${asked%:*}:${second}Z
            return 0
        fi
    fi
    asked=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    read_ticks
    asked_ticks=$ticks
    moment=$asked
}

# --- the journal ------------------------------------------------------------------------------------------------------

pending= ending=
# What the step that has ended made, and its entry waits for: names for durable, seen from "$spool/entries".
unsettled=

newest_entry() {
    set -- "$folder"/journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json
    shift $(($# - 1))
    newest=$1
    [ -e "$newest" ] || newest=
}

# The value of the field "$2" (a text or a number) in the entry "$1", without starting a program.
field() {
    value=${1#*\""$2"\":}
    value=${value%%[,\}]*}
    value=${value#\"}
    value=${value%\"}
}

read_newest() {
    newest_entry
    entry= number=0 previous=null seen_fence=0 seen_run=
    [ -n "$newest" ] || return 0
    IFS= read -r entry <"$newest" || :
    field "$entry" number && number=$value
    field "$entry" fence && seen_fence=$value
    field "$entry" run && seen_run=$value
    previous=$(sha256sum <"$newest")
    previous=\"${previous%% *}\"
}

not_overtaken() {
    if [ "$seen_fence" -gt "$fence" ]; then
        say "overtaken $seen_fence"
        exit 94
    fi
}

# write_down WHAT STEP INPUTS OUTCOME (each but the first may be null): an entry for the next flush.
write_down() {
    pending="$pending$1 $2 $3 $4
"
}

# Writes what is pending, each entry durable under its own name, never over another one. On a full disk the reserve makes
# room for it: what happened must be written down, above all on the way back.
flush() {
    [ -n "$pending" ] || return 0
    lock_journal
    expected=$newest
    newest_entry
    if [ "$newest" != "$expected" ]; then
        read_newest
        not_overtaken
    fi
    read_moment
    if ! write_entries; then
        rm -rf "$folder/.tma-reserve" "$spool/entries"
        umask 022
        mkdir "$spool/entries"
        write_entries
    fi
    unlock_journal
    pending= unsettled=
}

# The SHA-256 of the entry that was written last, for the one after it.
hash_entry() {
    e_previous=$(sha256sum <"$spool/entries/$name") || return 1
    e_previous=\"${e_previous%% *}\"
}

write_entries() {
    names= e_number=$number e_previous=$previous
    umask 0222
    while read -r e_what e_step e_inputs e_outcome; do
        [ -n "$e_what" ] || continue
        [ -z "$names" ] || hash_entry || return 1
        e_number=$((e_number + 1))
        padded=$((1000000 + e_number))
        name=${padded#1}-$e_what.json
        [ "$e_inputs" = null ] || e_inputs=\"$e_inputs\"
        [ "$e_outcome" = null ] || e_outcome=\"$e_outcome\"
        printf '{"at":"%s",%s,"inputs":%s,"number":%s,"outcome":%s,"previous":%s,%s,"step":%s,"what":"%s"}' \
            "$moment" "$entry_head" "$e_inputs" "$e_number" "$e_outcome" "$e_previous" "$entry_tail" "$e_step" "$e_what" \
            >"$spool/entries/$name" || return 1
        names="$names $name"
    done <<END
$pending
END
    umask 022
    # Nothing follows the last one of a job.
    [ -n "$ending" ] || hash_entry || return 1
    # These names hold nothing that the shell would split or expand.
    cd "$spool/entries" || return 1
    durable $names $unsettled && mv -f $names "$folder/journal" || return 1
    cd "$folder"
    durable "$folder/journal"
    newest=$folder/journal/$name
    number=$e_number previous=$e_previous
}

# What this run has done, newest first, as far back as it went in this direction: whoever went the other way since has
# undone it. And whether this attempt was announced, and how it was concluded last.
read_done() {
    done_before=' ' other_way=
    set -- "$folder"/journal/[0-9][0-9][0-9][0-9][0-9][0-9]-*.json
    # No run has so many entries; the journal itself is never cleaned.
    [ $# -le 1000 ] || shift $(($# - 1000))
    [ -e "$1" ] || return 0
    back=$#
    while [ "$back" -gt 0 ]; do
        eval "name=\${$back}"
        back=$((back - 1))
        # A lock that was let go is a run of its own, and says nothing of what was done.
        case $name in *-lock-released.json) continue ;; esac
        IFS= read -r entry <"$name" || :
        field "$entry" run
        [ "$value" = "$run" ] || break
        field "$entry" what
        case $value in
        step-started | step-finished | back-started | back-finished)
            case $value in "$direction"-*) ;; *) other_way=yes ;; esac
            [ -z "$other_way" ] && [ "$value" = "$direction-finished" ] || continue
            field "$entry" inputs && one=$value
            field "$entry" outcome && one=$one:$value
            field "$entry" record && one=$one:$value
            done_before="$done_before$one "
            ;;
        deployment-started)
            field "$entry" record
            [ "$value" != "$record" ] || announced=yes
            ;;
        deployment-finished)
            field "$entry" outcome
            outcome=$value
            field "$entry" record
            [ "$value" != "$record" ] || concluded=${concluded:-$outcome}
            ;;
        esac
    done
}

# --- the job ----------------------------------------------------------------------------------------------------------

begin() {
    trap 'rm -rf "$spool"' EXIT
    echo "$$" >"$spool/pid" || :
    if ! lock_steps 0 && { say waiting; ! lock_steps "$limit"; }; then
        say 'busy'
        exit 96
    fi
    for name in releases shared journal backups lists; do
        if [ ! -d "$folder/$name" ]; then
            mkdir -p "$folder/$name"
            case $name in backups | lists) chmod 0700 "$folder/$name" "$folder/incoming" ;; esac
        fi
    done
    # Whoever adds an entry now is seen by flush, which looks again.
    read_newest
    not_overtaken
    if [ -z "$newest" ]; then
        durable "$folder"
        if [ -e "$folder/current" ] || [ -L "$folder/current" ] || [ -n "$(ls -A "$folder/releases")" ]; then
            say 'refused there are releases, and no deployment journal'
            exit 91
        fi
    fi
    announced= concluded=
    read_done
    # What nobody receives, waits with or runs any more.
    for name in "$folder"/incoming/*; do
        [ "$name" != "$spool" ] && [ -d "$name" ] || continue
        owner=${name##*.}
        [ ! -s "$name/pid" ] || IFS= read -r owner <"$name/pid" || :
        kill -0 "$owner" 2>/dev/null || [ -d "/proc/$owner" ] || rm -rf "$name"
    done
    [ -n "$announced" ] || write_down deployment-started null null null
}

# step NUMBER INPUTS ACT WORD…: done once for these inputs; the number is for people, and may be another when the plan has
# become shorter. A failure ends the job; the next attempt tries it again.
step() {
    step_number=$1 step_inputs=$2
    shift 2
    case $done_before in
    *" $step_inputs:ok:"*)
        if "still_$@"; then
            say "step $step_number ok again"
            return 0
        fi
        ;;
    *" $step_inputs:failed:$record "*)
        say 'out it had failed when the line was cut; what it printed is lost'
        say "step $step_number failed 1"
        end
        exit 0
        ;;
    esac
    write_down "$direction-started" "$step_number" "$step_inputs" null
    flush
    say "step $step_number started"
    # The way back takes what was kept for it: a link and a program's output need an inode as well.
    if [ "$direction" = back ] && [ -d "$folder/.tma-reserve" ] && [ -n "$(say_if_full "$spool/room")" ]; then
        rm -rf "$folder/.tma-reserve"
    fi
    set +e
    (
        set -e
        "act_$@"
    ) 2>"$spool/trouble"
    code=$?
    set -e
    if [ "$code" -ne 0 ]; then
        full=$(say_if_full "$spool/room")
        [ -z "$full" ] || code=1
        rm -rf "$spool/new" "$spool/tree"
        write_down "$direction-finished" "$step_number" "$step_inputs" failed
        flush
        tail -n 12 "$spool/trouble" | tr '\r' ' ' |
            while IFS= read -r line || [ -n "$line" ]; do say "out $line"; done
        [ -z "$full" ] || say "out $full"
        say "step $step_number failed $code"
        end
        exit 0
    fi
    write_down "$direction-finished" "$step_number" "$step_inputs" ok
    # What these two renamed last becomes durable with the entry that says so, not in a call of its own before.
    case $1 in
    upload) unsettled='../../../releases ../../../lists' ;;
    switch) unsettled='../../..' ;;
    esac
    say "step $step_number ok"
}

# intend DIRECTION NUMBER INPUTS: the controller is about to do this step itself, through the connection.
intend() {
    write_down "$1-started" "$2" "$3" null
}

# conclude DIRECTION NUMBER INPUTS OUTCOME: what became of it.
conclude() {
    case $done_before in
    *" $3:$4:$record "*) ;;
    *) write_down "$1-finished" "$2" "$3" "$4" ;;
    esac
}

# finish OUTCOME: of this host's part in the deployment.
finish() {
    [ "$concluded" = "$1" ] || write_down deployment-finished null null "$1"
}

# clean RELEASE…: takes old releases away, as far as that works; never one that something points to.
clean() {
    flush
    for name do
        pointed=
        for link in "$folder"/*; do
            [ -L "$link" ] || continue
            case $(readlink "$link")/ in "releases/$name/"* | *"/releases/$name/"*) pointed=yes ;; esac
        done
        [ -z "$pointed" ] || continue
        [ ! -d "$folder/releases/$name" ] || mv -T "$folder/releases/$name" "$spool/clean.$name" || continue
        rm -rf "$spool/clean.$name" "$folder/lists/$name" || :
    done
}

# Bytes and inodes that a job and its entries find when the disk is full.
make_reserve() {
    rm -rf "$folder/.tma-reserve"
    mkdir "$folder/.tma-reserve" || return
    for name in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
        true >"$folder/.tma-reserve/$name" || return
    done
    dd if=/dev/zero of="$folder/.tma-reserve/room" bs=131072 count=1 2>/dev/null
}

end() {
    ending=yes
    flush
    # Not sooner: it is there for what this job has to write down.
    [ -s "$folder/.tma-reserve/room" ] || make_reserve || :
    unlock_steps
}

# Whether what a step did is still so; somebody may have undone it meanwhile.
still_upload() {
    [ -d "$folder/releases/$1" ] && [ ! -L "$folder/releases/$1" ] || return 1
    survey "$folder/releases/$1" "$spool/list"
    survey_digest "$spool/list"
    [ "$digest" = "$2" ]
}
still_switch() { [ "$(readlink "$folder/current" 2>/dev/null)" = "${1:+releases/$1}" ]; }
still_render() { :; }
still_restore() { :; }
still_command() { :; }
still_probe() { :; }

# --- what a step does ---------------------------------------------------------------------------------------------------

# What the host holds is not what the payload was made for.
different() {
    : >"$spool/trouble"
    exit 92
}

# act_upload RELEASE DIGEST BASE HOW: what is in "$spool/tree" makes, alone or (BASE) laid over the release that serves, the
# release whose whole list has this SHA-256. HOW is "link", or "copy" where a program of the product's own may write into the
# new release before it serves: through a hard link it would write into the old one. The release's name appears only when
# every file was compared.
act_upload() {
    target=$folder/releases/$1 list=$folder/lists/$1
    if [ -d "$target" ] && [ ! -L "$target" ]; then
        # Every byte: it has not served, so nobody has looked at it since.
        survey "$target" "$spool/list"
        survey_digest "$spool/list"
        if [ "$digest" = "$2" ]; then
            replace "$spool/list" "$list"
            return 0
        fi
        [ "$(readlink "$folder/current" 2>/dev/null)" != "releases/$1" ] ||
            refuse "release $1 serves, but its files were changed there"
        set_aside "$1"
    fi
    if [ -n "$3" ]; then
        # Where that does not work, or there is nothing to build on ("="), everything is sent.
        [ "$3" != = ] || different
        if [ "${4:-link}" = link ]; then
            cp -al "$folder/releases/$3" "$spool/new" || different
        else
            cp -a "$folder/releases/$3" "$spool/new" || different
        fi
        # A file that is replaced goes first: writing over it would change the old release through the hard link.
        cd "$spool/new"
        [ ! -s "$spool/remove" ] || xargs -0 rm -f -- <"$spool/remove" || different
        [ ! -s "$spool/rmdir" ] || xargs -0 rmdir -- <"$spool/rmdir" || different
        cd "$folder"
        # A patch may only take away. What has changed since it was made may be in the way.
        if [ -d "$spool/tree" ]; then cp -a "$spool/tree/." "$spool/new" || different; fi
        survey "$spool/new" "$spool/list" "$folder/lists/$3"
    else
        mkdir -p "$spool/tree"
        mv -T "$spool/tree" "$spool/new"
        chmod 0755 "$spool/new"
        survey "$spool/new" "$spool/list"
    fi
    survey_digest "$spool/list"
    if [ "$digest" != "$2" ]; then
        if [ -f "$spool/expected" ]; then differences "$spool/expected" "$spool/list" | sort | head -n 50 >&2; fi
        exit 92
    fi
    # The files must be on the disk before the name is: a power cut must not leave a release of empty files.
    durable_all "$spool"
    replace "$spool/list" "$list"
    mv -T "$spool/new" "$target"
    relabel "$target"
}

# SELinux: files that were moved keep the label of the place where they were made.
relabel() {
    if command -v selinuxenabled >/dev/null 2>&1 && selinuxenabled; then restorecon -RF "$1"; fi
}

# A release that is not current, and not what it should be, out of the way; it is kept.
set_aside() {
    mkdir -p "$folder/backups/$run/releases"
    aside=$folder/backups/$run/releases/$1 copy=1
    while [ -e "$aside" ]; do
        copy=$((copy + 1))
        aside=$folder/backups/$run/releases/$1.$copy
    done
    mv -T "$folder/releases/$1" "$aside"
    durable "$folder/releases" "$folder/backups/$run/releases"
}

# act_switch RELEASE ("" for none): current points to it, in one rename.
act_switch() {
    cd "$folder"
    if [ -L current ]; then
        before=$(readlink current)
        case $before in
        releases/*/* | releases/) refuse "current points to $before" ;;
        releases/*) ;;
        *) refuse "current points to $before" ;;
        esac
    elif [ -e current ]; then
        refuse 'current is not a symbolic link'
    else
        before=
    fi
    if [ -z "$1" ]; then
        rm -f current
    elif [ "$before" != "releases/$1" ]; then
        [ -d "releases/$1" ] && [ ! -L "releases/$1" ] || refuse "there is no folder releases/$1"
        ln -sfn "releases/$1" .tma-current
        replace .tma-current current
    fi
}

# act_render NUMBER: each file of "$spool/files/NUMBER" replaces the one in shared/ atomically, mode 0600. What was there before is kept
# under backups/<run>/shared, or its absence noted under shared.absent; the first time only, so that doing it again after a
# crash does not keep our own file as the one before. All is judged before anything is written.
act_render() {
    saved=$folder/backups/$run/shared absent=$folder/backups/$run/shared.absent
    umask 077
    mkdir -p "$saved" "$absent"
    cd "$spool/files/$1"
    find . -type f | sed 's,^\./,,' | sort >"$spool/names"
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
    done <"$spool/names"
    while IFS= read -r name; do
        place=$folder/shared/$name
        [ ! -e "$saved/$name" ] && [ ! -e "$absent/$name" ] || continue
        if [ -e "$place" ]; then
            mkdir -p "$saved/$name"
            rmdir "$saved/$name"
            cp -p "$place" "$saved/$name.tma-new"
            replace "$saved/$name.tma-new" "$saved/$name"
        else
            mkdir -p "$absent/$name"
            rmdir "$absent/$name"
            : >"$absent/$name"
        fi
    done <"$spool/names"
    durable_all "$saved"
    while IFS= read -r name; do
        place=$folder/shared/$name
        case $name in */*) (umask 022 && mkdir -p "${place%/*}") ;; esac
        chmod 0600 "./$name"
        durable "./$name"
        replace "./$name" "$place"
        durable "${place%/*}"
    done <"$spool/names"
    list_shared
}

# The SHA-256 of each file that we have rendered into shared/, for drift to compare.
list_shared() {
    cd "$folder/shared"
    { cat "$spool/names" && sed 's/^[^ ]*  //' "$folder/lists/.shared" 2>/dev/null || :; } | sort -u >"$spool/rendered"
    while IFS= read -r name; do
        [ -f "./$name" ] || continue
        hash=$(sha256sum <"./$name")
        printf '%s  %s\n' "${hash%% *}" "$name"
    done <"$spool/rendered" >"$spool/shared"
    replace "$spool/shared" "$folder/lists/.shared"
    durable "$folder/lists"
}

# act_restore: shared/ as it was before this run wrote to it.
act_restore() {
    saved=$folder/backups/$run/shared absent=$folder/backups/$run/shared.absent
    : >"$spool/names"
    if [ -d "$saved" ]; then
        cd "$saved"
        find . -type f ! -name '*.tma-new' | while IFS= read -r name; do
            place=$folder/shared/$name
            mkdir -p "${place%/*}"
            cp -p "$name" "$place.tma-new"
            durable "$place.tma-new"
            replace "$place.tma-new" "$place"
        done
    fi
    if [ -d "$absent" ]; then
        cd "$absent"
        find . -type f | while IFS= read -r name; do rm -f "$folder/shared/$name"; done
    fi
    list_shared
    durable_all "$folder"
}

# One of the product's own programs: words, never a line. This shell waits for it with the lock's descriptor, which the
# program and the daemons that it starts do not get: a killed job's program still holds the lock, a daemon never does.
program() {
    seconds=$1 start=$2
    shift 2
    cd "$folder/$start" || exit 1
    # SIGPIPE as it was, the locale as it was; a part of what it prints is kept.
    trap - PIPE
    if [ -n "$tma_locale" ]; then LC_ALL=$tma_locale; else unset LC_ALL; fi
    if command -v timeout >/dev/null 2>&1; then set -- timeout -k 5 "$seconds" "$@"; fi
    "$@" </dev/null >"$spool/output" 2>&1 8<&- 9<&-
}

# act_command SECONDS FOLDER PROGRAM ARGUMENT…
act_command() {
    set +e
    program "$@"
    code=$?
    [ "$code" -eq 0 ] || tail -c 4096 "$spool/output" >&2
    exit "$code"
}

# act_probe SECONDS FOLDER PROGRAM ARGUMENT…: until it ends with 0.
act_probe() {
    set +e
    read_ticks
    # Five tries a second at most: an end, even where the ticks stand still.
    until_ticks=$((ticks + $1 * 100)) tries=$(($1 * 5))
    while :; do
        program "$@"
        code=$?
        [ "$code" -ne 0 ] || exit 0
        read_ticks
        tries=$((tries - 1))
        [ "$ticks" -lt "$until_ticks" ] && [ "$tries" -gt 0 ] || break
        sleep 0.2 2>/dev/null || sleep 1
    done
    tail -c 4096 "$spool/output" >&2
    exit "$code"
}
