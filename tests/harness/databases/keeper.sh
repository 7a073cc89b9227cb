#!/bin/sh
# Stops a database server once nobody holds a lease on it, however its users ended:
# a lease is a shared lock on a file, and the kernel drops it with the process.
#
#   keeper.sh LOCK GRACE_SECONDS DIR READY
#
# DIR holds `pid` and everything of the server; READY is the file that names a
# shared server ("" for a private one). Both are removed while the lock is held,
# so that nobody can find a server that is about to stop.
lock=$1 grace=$2 dir=$3 ready=$4
exec 9< "$lock" || exit 1
idle=0
while [ -d "$dir" ]; do
  sleep 1
  if flock -n -x 9; then
    idle=$((idle + 1))
    if [ "$idle" -gt "$grace" ]; then
      [ -z "$ready" ] || rm -f "$ready"
      if pid=$(cat "$dir/pid" 2> /dev/null); then
        kill -QUIT "$pid" 2> /dev/null
        for _ in 1 2 3 4 5 6 7 8 9 10; do
          kill -0 "$pid" 2> /dev/null || break
          sleep 0.5
        done
        kill -KILL -- "-$pid" 2> /dev/null
      fi
      rm -rf "$dir"
      [ -n "$ready" ] || rm -f "$lock"
      exit 0
    fi
    flock -u 9
  else
    idle=0
  fi
done
[ -n "$ready" ] || rm -f "$lock"
