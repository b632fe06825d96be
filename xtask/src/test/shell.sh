#!/bin/sh
# Mounts what programs expect and becomes a shell on the console.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
export PATH=/bin:/sbin HOME=/root TERM=dumb
exec sh
