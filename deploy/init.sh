#!/bin/sh
# Makes the secrets of a new installation: what is there already is kept, so it may run at every start. Each secret lies in the
# volume of its reader, readable by that user alone.
set -eu
umask 077

random() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }

# put OWNER FILE TEXT: whole or not at all.
put() {
  rm -f "$2.new"
  printf '%s\n' "$3" >"$2.new"
  chmod 0400 "$2.new"
  chown "$1" "$2.new"
  mv "$2.new" "$2"
}

if [ ! -e /secrets/redis/redis.conf ]; then
  password=$(random)
  put 65532:65532 /secrets/engine/redis-url "redis://:$password@redis:6379"
  # Last, because it says that both are there.
  put 999:1000 /secrets/redis/redis.conf "requirepass $password"
fi
if [ ! -e /secrets/grafana/admin-password ]; then
  put 472:0 /secrets/grafana/admin-password "$(random)"
fi
# The directories are root's; their readers must be able to look into them.
chmod 0755 /secrets/redis /secrets/engine /secrets/grafana
