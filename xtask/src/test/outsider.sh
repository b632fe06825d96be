#!/bin/busybox sh
# An outsider's /init: nothing is there but busybox and what this makes.
set -e
b=/bin/busybox
echo "init is $$"
$b mkdir -p /proc /sys /mnt /tmp
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t tmpfs tmpfs /tmp
$b mount -t hugetlbfs hugetlbfs /mnt
echo "cpus $($b grep -c ^processor /proc/cpuinfo)"
echo 16 > /proc/sys/vm/nr_hugepages
echo "pool $($b awk '/HugePages_Total/ { print $2 }' /proc/meminfo)"
$b truncate -s 4M /mnt/file
echo "file $($b stat -c %s /mnt/file)"
$b rm /mnt/file
echo 0 > /proc/sys/vm/nr_hugepages
$b umount /mnt
echo bye
$b poweroff -f
