# $1 release, $2 the most bytes. Standard input: names below the release, one a line, as printf's %b reads them. Prints
# them as a tar: files as they are, links as links. Refused for what is neither, and for what lies behind a link.
most=$2
cd "$folder/releases/$1"
set --
total=0
while IFS= read -r line; do
    name=$(printf '%b.' "$line")
    name=./${name%.}
    above=${name%/*}
    while [ "$above" != . ]; do
        if [ -L "$above" ]; then refuse "$above is a link: what lies behind it is not the release's"; fi
        above=${above%/*}
    done
    if [ ! -L "$name" ]; then
        if [ -d "$name" ]; then continue; fi # an empty folder, which Git does not know
        [ -f "$name" ] || refuse "$name is not a file"
        [ -r "$name" ] || refuse "$name cannot be read by us"
        total=$((total + $(wc -c <"$name")))
    fi
    set -- "$@" "$name"
done
[ "$total" -le "$most" ] || refuse "the changed files have $total bytes, more than the $most that are adopted"
if [ "$#" -eq 0 ]; then exit 0; fi
# GNU tar would take a backslash in a name for the beginning of an escape.
plain=
if tar --no-unquote -cf /dev/null /dev/null 2>/dev/null; then plain=--no-unquote; fi
exec tar $plain -cf - "$@"
