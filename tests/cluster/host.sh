#!/usr/bin/env bash
# Process 1 of a test host, in namespaces of its own: an address, disk, home and Python environment of its own; sshd.
set -euo pipefail
hosts=$1 name=$2 address=$3 venv=$4
disk=$hosts/$name home=$HOME
hostname "$name"
mount --bind "$hosts/etc-hosts" /etc/hosts
mount --bind "$hosts/etc-shadow" /etc/shadow
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd
cp -p "$hosts/ssh/"* /run/sshd/
# what is installed there, to be written to without a trace here
mount -t overlay overlay -o "lowerdir=$venv,upperdir=$disk/venv,workdir=$disk/work" "$venv"
mount --bind "$venv" "$disk/home/ovr-ray/.venv"
# a home and a /tmp of its own would hide what all hosts share
while read -r shared; do
    case $shared in
        "$home"/*) at=$disk/home/${shared#"$home"/} ;;
        /tmp/*) at=$disk/tmp/${shared#/tmp/} ;;
        *) continue ;;
    esac
    mkdir -p "$at"
    mount --rbind "$shared" "$at"
done <"$hosts/shared"
mount --rbind "$disk/home" "$home"
mount --rbind "$disk/tmp" /tmp
mount -t proc proc /proc
cd /
echo up
if [[ $name == laptop ]]; then
    sleep infinity &
else
    /usr/sbin/sshd -D -f /run/sshd/sshd_config -o "ListenAddress=$address" &
fi
wait $! # as process 1 it reaps what Ray leaves behind
