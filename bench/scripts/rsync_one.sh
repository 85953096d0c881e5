#!/bin/sh
# One host: the release beside the old one by hard links to what is the same, then one command that switches and checks.
# usage: rsync_one.sh SSH_CONFIG SOURCE RELEASE SUMS-OR-DASH ADDRESS PORT FOLDER
set -eu
config=$1 source=$2 release=$3 sums=$4 address=$5 port=$6 folder=$7

rsync -a --link-dest=../../current/ -e "ssh -F $config -p $port" "$source/" "$address:$folder/releases/$release/"

verify=:
[ "$sums" = - ] && sums=/dev/null || verify="cd releases/$release && sha256sum --quiet -c - && cd ../.."
ssh -F "$config" -p "$port" "$address" "set -eu
cd '$folder'
$verify
ln -s releases/$release current.new
mv -T current.new current
cd current
sh bin/restart ../../shared
grep -q '$release' ../../shared/served
cd ../../releases
ls -1 | sort -V | head -n -5 | xargs -r rm -rf --" <"$sums"
