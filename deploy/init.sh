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
# key NAME SCOPES FILE OWNER: an API key in FILE, and the section that knows its hash in sections.
key() {
  key="tg_$(random)"
  put "$4" "$3" "$key"
  hash=$(printf %s "$key" | sha256sum | cut -d' ' -f1)
  sections="$sections
[[auth.api_key]]
name = \"$1\"
subject = \"$1\"
scopes = [$2]
sha256 = \"$hash\"
"
}

if [ ! -e /secrets/auth/tidegate.toml ]; then
  sections=
  key gateways '"engine:delegate"' /secrets/gateway/engine-key 65532:65532
  key workers '"engine:work"' /secrets/worker/engine-key 65532:65532
  key operator '"jobs:submit", "jobs:read", "jobs:control", "jobs:admin"' /secrets/operator/api-key 0:0
  put 65532:65532 /secrets/gateway/edge.secret "$(random)"
  # It holds hashes, no keys. Last, because it says that all are there.
  put 65532:65532 /secrets/auth/tidegate.toml "# Who may connect. Add your issuers and keys: docs/auth.md says how; a change is taken within seconds.
[auth]
secret_file = \"/run/secrets/edge.secret\"

[auth.session]
# The load balancer speaks plain HTTP, on loopback. With TLS in front, remove this.
secure = false
$sections"
fi
if [ ! -e /secrets/prometheus/admin-token ]; then
  token=$(random)
  put 65532:65532 /secrets/worker/admin-token "$token"
  # Last, because it says that both are there.
  put 65534:65534 /secrets/prometheus/admin-token "$token"
fi
if [ ! -e /secrets/grafana/admin-password ]; then
  put 472:0 /secrets/grafana/admin-password "$(random)"
fi
# The directories are root's; their readers must be able to look into them.
chmod 0755 /secrets/*
