# Prints how the files that we have rendered into shared/ differ from what we wrote: "changed NAME" or "missing NAME".
[ -f "$folder/lists/.shared" ] || exit 0
cd "$folder/shared"
while IFS= read -r line; do
    name=${line#*  }
    if [ ! -f "$name" ] || [ -L "$name" ]; then
        printf '%s\n' "missing $name"
    elif hash=$(sha256sum <"$name" 2>/dev/null) && [ "${hash%% *}" = "${line%%  *}" ]; then
        :
    else
        printf '%s\n' "changed $name"
    fi
done <"$folder/lists/.shared"
