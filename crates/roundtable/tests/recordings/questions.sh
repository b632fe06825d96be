#!/bin/bash
# Makes the situations of docs/operators.md ("Questions that people had") with real programs, and records each in a folder of its own.
#
# For root on a host that can spare 1 GiB; needs PostgreSQL, MariaDB, QEMU and python3. The pool of huge pages is put back at the end.
# Each situation has a PID namespace of its own, so that nothing else is in the recording.
set -eu
export ROUNDTABLE=${ROUNDTABLE:-roundtable} SCRATCH=${SCRATCH:-/tmp/roundtable-questions}
OUT=$(realpath "$(dirname "$0")")/questions
POOL=/proc/sys/vm/nr_hugepages
before=$(cat $POOL)
# Those that are named, or all.
ONLY="$*"
trap 'echo "$before" >$POOL; rm -rf "$SCRATCH"' EXIT
rm -rf "$SCRATCH" && mkdir -p "$SCRATCH" "$OUT"

pool() { echo "$1" >$POOL; }

# Runs a situation, which ends with a call of `record`, among its own processes and mounts.
situation() {
    [[ -z $ONLY || " $ONLY " == *" $1 "* ]] || return 0
    echo "==> $1"
    rm -rf "${OUT:?}/$1"
    NAME=$OUT/$1 UNIT=$2 unshare --fork --pid --ipc --mount --mount-proc bash -euc "$(declare -f record wait_for); $3"
}
record() {
    "$ROUNDTABLE" record --keep-names "$NAME"
    # Whatever unit this shell is in, the programs are in that of a service.
    sed -i -E "s#^(0:|2:name=systemd):/.*#\1:/system.slice/$UNIT.service#" "$NAME"/proc/*/cgroup
    # A container is in one group of all kinds.
    for file in $(grep -l kubepods "$NAME"/proc/*/cgroup); do
        path=$(sed -n "s|^1:hugetlb:||p" $file)
        printf "0::%s\n1:hugetlb:%s\n" $path $path >$file
    done
}
wait_for() { for _ in $(seq 200); do eval "$1" && return; sleep 0.1; done; echo "not met: $1" >&2; exit 1; }
export -f record wait_for

# 1. A program was killed and left its files on a mount that nobody thinks of.
pool 64
situation left-files dpdk '
    mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages
    for i in 0 1 2; do python3 -c "
import mmap, os, sys
f = os.open(\"/dev/hugepages/rtemap_$i\", os.O_RDWR | os.O_CREAT)
os.ftruncate(f, 16 << 21)
m = mmap.mmap(f, 16 << 21)
for page in range(16): m[page << 21] = 1
os.kill(os.getpid(), 9)" || true; done 2>/dev/null
    record; umount /dev/hugepages'

# 2. Neither a file nor a process to be seen: one has a file without a name open, and a segment was left.
pool 64
situation nothing-in-sight spdk '
    python3 -c "
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
f = libc.memfd_create(b\"spdk_dma\", 4)
libc.fallocate(f, 0, ctypes.c_long(0), ctypes.c_long(40 << 21))
libc.shmat.restype = ctypes.c_void_p
i = libc.shmget(0x5ada, 12 << 21, 0o1000 | 0o4000 | 0o600)
a = libc.shmat(i, None, 0)
for page in range(12): ctypes.c_char.from_address(a + (page << 21)).value = b\"x\"
libc.shmdt(ctypes.c_void_p(a))
libc.prctl(15, b\"spdk_tgt\", 0, 0, 0)
open(\"$SCRATCH/ready\", \"w\").close()
time.sleep(1000)" & wait_for "[ -e $SCRATCH/ready ]"
    record; kill %1'

POSTGRES='
    bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups env -i PATH="$bin:/bin" "$@"; }
    data=/var/lib/postgresql/$NUMBER; mkdir -p $data; mount -t tmpfs none $data; chown postgres $data; cd $data
    as initdb -D $data/main -A trust -N --locale=C >/dev/null
    cat >>$data/main/postgresql.conf <<END
listen_addresses = '\'''\''
unix_socket_directories = '\''$data'\''
max_connections = 100
shared_buffers = 256MB
autovacuum = off
jit = off
fsync = off
max_parallel_workers_per_gather = 0
$SETTINGS
END
    as pg_ctl start -s -w -D $data/main -l $data/log
    psql="as psql -h $data -d postgres -q -t"
    $psql -c "create unlogged table t (a int, b text) with (fillfactor = 10); alter table t alter b set storage plain;
        insert into t select a, repeat('\''x'\'', 1000) from generate_series(1, 28000) a"
    for i in $(seq 8); do
        (echo "select sum(length(b)) from t;"; sleep 1000) | $psql >$data/answer.$i &
        wait_for "[ -s $data/answer.$i ]"
    done
    # The connections of the clients are the recording; the clients are not.
    record; as pg_ctl stop -s -m immediate -D $data/main || true'

# 3. The memory of a server grows with its connections.
pool 0
export SETTINGS="huge_pages = off" NUMBER=15
situation connections postgresql@15-main "$POSTGRES"

# 4. The default, huge_pages=try, and a pool that is too short.
pool 100
export SETTINGS=""
situation try postgresql@15-main "$POSTGRES"

# 5. Memory that was given back, and its page tables.
pool 0
situation no-memory cache '
    python3 -c "
import mmap, time, ctypes
libc = ctypes.CDLL(None)
m = mmap.mmap(-1, 64 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
libc.madvise(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m))), ctypes.c_size_t(64 << 30), 15)
for at in range(0, 64 << 30, 2 << 20): m[at] = 1
libc.prctl(15, b\"cache\", 0, 0, 0)
open(\"$SCRATCH/ready-m\", \"w\").close()
time.sleep(1000)" & wait_for "[ -e $SCRATCH/ready-m ]"
    record; kill %1'

# 6. A container that may have no huge pages, as Kubernetes makes it, on a host with a pool.
pool 64
mkdir -p "$SCRATCH/cg" && mount -t cgroup -o hugetlb none "$SCRATCH/cg"
group=$SCRATCH/cg/kubepods/pod5b1c/3f9a
mkdir -p "$group" && echo 0 >"$group/hugetlb.2MB.limit_in_bytes"
export GROUP=$group
situation kubernetes kubelet '
    (echo $BASHPID >$GROUP/cgroup.procs; exec python3 -c "
import mmap, os, time, signal, ctypes
libc = ctypes.CDLL(None)
m = mmap.mmap(-1, 8 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
pid = os.fork()
if pid == 0:
    m[0] = 1
    os._exit(0)
print(\"the child ended with signal\", os.waitpid(pid, 0)[1] & 127)
libc.prctl(15, b\"postgres\", 0, 0, 0)
open(\"$SCRATCH/ready-k\", \"w\").close()
time.sleep(1000)") & wait_for "[ -e $SCRATCH/ready-k ]"
    record; kill %1; sleep 0.5'
rmdir "$group" "${group%/*}" "$SCRATCH/cg/kubepods" || true
umount "$SCRATCH/cg"

# 7. Free pages, and a virtual machine that does not start: they are promised to another, which has not touched them.
pool 300
situation promised libvirtd '
    for size in 448 64; do
        qemu-system-x86_64 -S -display none -nodefaults -monitor none -serial none -accel tcg,tb-size=32 -m ${size}M \
            -object memory-backend-memfd,id=ram,size=${size}M,hugetlb=on,hugetlbsize=2M,share=on \
            -machine memory-backend=ram &
    done
    wait_for "grep -q \"HugePages_Rsvd: *256\" /proc/meminfo"
    record; kill %1 %2; wait'

# 8. large_pages is not set, and the page tables of the buffer pool are not looked for.
pool 0
situation mariadb mariadb '
    data=/var/lib/mysql; mkdir -p $data; mount -t tmpfs none $data; cd $data
    options="--no-defaults --user=root --datadir=$data --socket=$data/s --skip-networking --skip-grant-tables
        --innodb-buffer-pool-size=1G --innodb-flush-log-at-trx-commit=0 --innodb-log-file-size=1200M --innodb-doublewrite=OFF"
    printf "create database test;\nuse test;\ncreate table t (a int primary key, b varbinary(7000)) engine=innodb;
insert into t select seq, repeat(\"x\", 7000) from seq_1_to_130000;\n" >fill.sql
    mariadbd $options --bootstrap <fill.sql 2>log
    printf "use test;\nselect sum(length(b)) from t;\n" >init.sql
    mariadbd $options --init-file=$data/init.sql 2>log &
    wait_for "grep -q \"ready for connections\" log"
    record; kill %1; wait'
