# One step at a time on this host, and one writer of the journal. flock(1) where there is one: the kernel lets go of it when
# its last holder dies. Elsewhere numbered links take its place: the highest number holds, its link names the process; when
# that is gone, or has written "free", whoever makes the next number holds. Only the kernel's lock also sees what a killed
# step has left running. The files are ours alone to open: whoever could read them could hold them.

if command -v flock >/dev/null 2>&1; then tma_flock=yes; else tma_flock=; fi

# lock_steps SECONDS: waits so long; descriptor 9.
lock_steps() {
    if [ -n "$tma_flock" ]; then
        umask 077
        exec 9>>"$folder/.tma-lock"
        umask 022
        wait_for "$1" flock -n 9
    else
        wait_for "$1" take_link steps
    fi
}

# lock_journal: waits for the short time that an entry takes; descriptor 8. unlock_journal lets go.
lock_journal() {
    if [ -n "$tma_flock" ]; then
        umask 077
        exec 8>>"$folder/.tma-journal"
        umask 022
        wait_for 60 flock -n 8
    else
        wait_for 60 take_link journal
    fi
}

unlock_journal() {
    if [ -n "$tma_flock" ]; then exec 8<&-; else free_link journal; fi
}

unlock_steps() {
    [ -n "$tma_flock" ] || free_link steps
}

# wait_for SECONDS COMMAND…: until the command works.
wait_for() {
    left=$1
    shift
    until "$@"; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 1
    done
}

# A process as "PID.START": a number that is used again has another start.
process_id() {
    IFS= read -r started <"/proc/$1/stat" || return 1
    started=${started##*) }
    # It has ended, and only nobody has asked how.
    case $started in [ZX]*) return 1 ;; esac
    set -- "$1" $started
    shift 20
    echo "$1"
}

highest_link() {
    highest=0
    for held in "$folder/.tma-lock.$1".[0-9]*; do
        [ -L "$held" ] || continue
        [ "${held##*.}" -le "$highest" ] || highest=${held##*.}
    done
}

take_link() {
    highest_link "$1"
    if [ "$highest" -gt 0 ]; then
        holder=$(readlink "$folder/.tma-lock.$1.$highest") || return 1
        case $holder in
        free) ;;
        *) [ "$(process_id "${holder%%.*}" 2>/dev/null)" != "${holder#*.}" ] || return 1 ;;
        esac
    fi
    mine=$((highest + 1))
    ln -s "$$.$(process_id $$)" "$folder/.tma-lock.$1.$mine" 2>/dev/null || return 1
    highest_link "$1"
    # Somebody slower than we may make a number that is over already.
    if [ "$highest" -ne "$mine" ]; then
        rm -f "$folder/.tma-lock.$1.$mine"
        return 1
    fi
    for held in "$folder/.tma-lock.$1".[0-9]*; do
        [ "${held##*.}" -ge "$mine" ] || rm -f "$held"
    done
}

free_link() {
    highest_link "$1"
    ln -s free "$folder/.tma-free.$$"
    mv -fT "$folder/.tma-free.$$" "$folder/.tma-lock.$1.$highest"
}
