#!/usr/bin/env bash
# Hosts on one Linux machine, for tests of what only happens between machines: `ray up` over ssh, `ray submit`, a host that dies.
#
#   hosts.sh up 3 | down | kill 2
#
# A host is a network, PID, mount, UTS and IPC namespace with an sshd as its first process, its own address (NET.11, NET.12, ...),
# hostname, /etc/hosts, /tmp, /root, /dev/shm, and a copy-on-write view of the Python environment, so that `pip install` on one
# host changes no other. The rest of the machine's files they share: a folder below ROOT stands in for NFS.
# Needs root, and Debian's iproute2, openssh-server, rsync, util-linux. Settings, all from the environment:
#   HOSTS_ROOT     where everything of theirs is kept; not below /tmp or /root, which every host has of its own
#   HOSTS_NAME     begins the names of hosts and interfaces; at most 8 characters
#   HOSTS_NET      the first three numbers of their network
#   HOSTS_SEES     paths below /tmp or /root that they see all the same
#   HOSTS_COPY     paths of which each has a copy of its own, written to without harm
#   HOSTS_BASHRC   the text of their ~/.bashrc
#   HOSTS_SETUP    a command run in every host's own view of the files, before its sshd
set -euo pipefail
ROOT=${HOSTS_ROOT:?where their files go, for instance /var/lib/recollect-hosts}
NAME=${HOSTS_NAME:-rclhost}
NET=${HOSTS_NET:-10.88.0}
KEY=$ROOT/id_ed25519
BRIDGE=${NAME}br

up() {
  local count=$1 number name
  mkdir -p "$ROOT"
  ssh-keygen -q -t ed25519 -N '' -C "$NAME" -f "$KEY"
  ip link add "$BRIDGE" type bridge
  ip addr add "$NET.1/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  echo 127.0.0.1 localhost > "$ROOT/hosts"
  for number in $(seq "$count"); do echo "$NET.$((10 + number)) $NAME$number" >> "$ROOT/hosts"; done
  for number in $(seq "$count"); do start "$number"; done
  for number in $(seq "$count"); do wait_for "$number"; done
}

start() {
  local number=$1 name=$NAME$1 home=$ROOT/$NAME$1/root
  ip netns add "$name"
  ip link add "v$name" type veth peer name eth0 netns "$name"
  ip link set "v$name" master "$BRIDGE" up
  ip -n "$name" addr add "$NET.$((10 + number))/24" dev eth0
  ip -n "$name" link set lo up
  ip -n "$name" link set eth0 up
  ip -n "$name" route add default via "$NET.1" # Ray finds a node's address by asking for the route to 8.8.8.8; nothing is sent
  mkdir -p "$home/.ssh" "$ROOT/$name/tmp"
  chmod 1777 "$ROOT/$name/tmp"
  chmod 700 "$home" "$home/.ssh"
  cp "$KEY.pub" "$home/.ssh/authorized_keys"
  echo '[ -f ~/.bashrc ] && . ~/.bashrc' > "$home/.profile"
  printf '%s\n' "${HOSTS_BASHRC:-}" > "$home/.bashrc"
  setsid ip netns exec "$name" unshare --mount --pid --uts --ipc --fork --kill-child --propagation private \
    bash "$(readlink -f "$0")" inside "$number" > "$ROOT/$name/log" 2>&1 < /dev/null &
  echo $! > "$ROOT/$name/pid"
}

inside() { # the first process of a host
  local name=$NAME$1 own=$ROOT/$NAME$1 path
  hostname "$name"
  mount --bind "$ROOT/hosts" /etc/hosts # gloo picks its interface by resolving the hostname
  for path in ${HOSTS_COPY:-}; do
    mkdir -p "$own/copy$path/new" "$own/copy$path/work"
    mount -t overlay overlay -o "lowerdir=$path,upperdir=$own/copy$path/new,workdir=$own/copy$path/work" "$path"
  done
  for path in ${HOSTS_SEES:-} ${HOSTS_COPY:-}; do
    case $path in /tmp/* | /root/*) mkdir -p "$own$path" && mount --rbind "$path" "$own$path" ;; esac
  done
  mount --rbind "$own/tmp" /tmp
  mount --rbind "$own/root" /root
  mount -t proc proc /proc
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  mkdir -p /run/sshd
  bash -c "${HOSTS_SETUP:-true}"
  exec /usr/sbin/sshd -D -e -o ListenAddress="$NET.$((10 + $1))" -o PidFile=none -o UsePAM=no \
    -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o MaxStartups=100 -o MaxSessions=100
}

wait_for() {
  local address=$NET.$((10 + $1)) try
  for try in $(seq 50); do
    ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i "$KEY" \
      "root@$address" true 2> /dev/null && return
    sleep 0.2
  done
  echo "no sshd answers on $address; its log:" >&2
  cat "$ROOT/$NAME$1/log" >&2
  return 1
}

kill_host() { # its first process dies, and with it, as in any PID namespace, all others: the power is cut
  kill -9 "$(pgrep -P "$(cat "$ROOT/$NAME$1/pid")" | head -1)"
}

down() { # also after an `up` that ended halfway
  local name
  for name in $(ip netns list | sed 's/ .*//' | grep "^$NAME[0-9]*$" || true); do
    ip netns pids "$name" | xargs -r kill -9 2> /dev/null || true
    for try in $(seq 50); do [ -n "$(ip netns pids "$name")" ] || break; sleep 0.1; done
    ip netns del "$name"
  done
  ip link del "$BRIDGE" 2> /dev/null || true
  rm -rf --one-file-system "$ROOT"
}

case ${1:-} in
  up) up "$2" ;;
  down) down ;;
  kill) kill_host "$2" ;;
  inside) inside "$2" ;;
  *) echo "usage: $0 up COUNT | down | kill NUMBER" >&2; exit 2 ;;
esac
