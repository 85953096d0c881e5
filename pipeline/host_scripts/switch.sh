# $1 release, or empty for none. Makes current point to it in one rename; prints what it pointed to before, "-" for nothing.
release=$1
cd "$folder"
if [ -L current ]; then
    before=$(readlink current)
    case $before in
    releases/*/* | releases/) refuse "current points to $before" ;;
    releases/*) before=${before#releases/} ;;
    *) refuse "current points to $before" ;;
    esac
elif [ -e current ]; then
    refuse 'current is not a symbolic link'
else
    before=-
fi
if [ -z "$release" ]; then
    rm -f current
elif [ "$before" != "$release" ]; then
    [ -d "releases/$release" ] && [ ! -L "releases/$release" ] || refuse "there is no folder releases/$release"
    rm -f .tma-current
    ln -s "releases/$release" .tma-current
    replace .tma-current current
fi
durable .
echo "$before"
