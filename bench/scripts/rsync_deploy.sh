#!/bin/sh
# All hosts at once. usage: rsync_deploy.sh SSH_CONFIG SOURCE RELEASE SUMS-OR-DASH PARALLEL
# One host a line on standard input: ADDRESS PORT FOLDER
set -eu
config=$1 source=$2 release=$3 sums=$4 parallel=$5
exec xargs -P "$parallel" -n 3 sh "$(dirname "$0")/rsync_one.sh" "$config" "$source" "$release" "$sums"
