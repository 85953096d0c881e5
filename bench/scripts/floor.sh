#!/bin/sh
# What a host itself has to do for a patch, without any line, lock or journal.
# usage: floor.sh FOLDER RELEASE CHANGED.tar DELETED SUMS
set -eu
cd "$1"
cp -al "$(readlink current)" "releases/$2"
cd "releases/$2"
xargs rm -f -- <"$4"
tar -xf "$3" --unlink-first
sha256sum --quiet -c "$5"
cd ../..
ln -s "releases/$2" current.new
mv -T current.new current
cd current
sh bin/restart ../../shared
grep -q "$2" ../../shared/served
