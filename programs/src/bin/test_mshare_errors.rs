//! Regions of msharefs: what is refused and how, permissions, limits, and what /proc shows.
//!
//! Linux has no msharefs; there these are skipped.

use roundtable_programs::child;
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, PRIVATE, R, RW, SHARED, madvise, mincore, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::mshare::{
    self, AT, CREATE_MAPPING, NewMapping, PROTECT, Region, UNMAP, command, granule, ready, with_memory,
};
use roundtable_programs::procfs::status;
use roundtable_programs::sys::{self, PAGE, check, pid};
use roundtable_programs::{Errno, tests};

tests! { mount_and_info, size_is_set_once, sizes_that_are_none, attaching_wrongly, mapping_inside_wrongly, unmapping_wrongly,
unknown_commands, bad_pointers, parts_of_an_attachment, no_region_in_a_region, permissions_of_the_file, address_space_limit,
locked_memory, advice, what_maps_show, what_smaps_show, reading_and_writing_the_file, names, seek_and_sync }

fn mount_and_info() {
    ready();
    let text = std::fs::read_to_string(format!("{}/mshare_info", mshare::MOUNT)).unwrap();
    assert!(text.trim().parse::<usize>().unwrap().is_power_of_two(), "{text:?}");
    assert_eq!(Fd::open(mshare::MOUNT, libc::O_RDONLY).unwrap().statfs().f_type, mshare::MAGIC);
    assert!(std::fs::read_to_string("/proc/filesystems").unwrap().contains("msharefs"));
    // Each mount has names of its own.
    let path = format!("/tmp/mshare-{}", pid());
    std::fs::create_dir_all(&path).unwrap();
    let mount = |options: &str| {
        let (path, kind, options) = (sys::c_string(&path), sys::c_string("msharefs"), sys::c_string(options));
        // SAFETY: all are NUL-terminated and live through the call.
        check(unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) })
    };
    assert_eq!(mount("size=1"), Err(Errno::EINVAL));
    let region = Region::new();
    mount("").unwrap();
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["mshare_info"]);
    assert!(std::path::Path::new(&region.path).exists());
    let path = sys::c_string(&path);
    // SAFETY: NUL-terminated.
    check(unsafe { libc::umount2(path.as_ptr(), 0) }).unwrap();
}

fn size_is_set_once() {
    ready();
    let (size, region) = (granule() as u64, Region::unsized_one());
    assert_eq!(region.fd.stat().st_size, 0);
    region.fd.truncate(0).unwrap();
    region.fd.truncate(size).unwrap();
    assert_eq!(region.fd.stat().st_size as u64, size);
    region.fd.truncate(size).unwrap();
    for other in [0, 2 * size] {
        assert_eq!(region.fd.truncate(other), Err(Errno::EINVAL));
        assert_eq!(region.fd.fallocate(0, 0, other.max(1)), Err(Errno::EINVAL));
    }
    assert_eq!(region.open(libc::O_RDWR | libc::O_TRUNC).unwrap_err(), Errno::EINVAL);
    let region = Region::unsized_one();
    region.fd.fallocate(0, 0, size).unwrap();
    assert_eq!(region.fd.stat().st_size as u64, size);
}

fn sizes_that_are_none() {
    ready();
    let (size, region) = (granule() as u64, Region::unsized_one());
    for wrong in [1, PAGE as u64, size - 1, size + PAGE as u64, size / 2] {
        assert_eq!(region.fd.truncate(wrong), Err(Errno::EINVAL), "{wrong:#x}");
    }
    for large in [1 << 47, i64::MAX as u64 & !(size - 1)] {
        assert_eq!(region.fd.truncate(large), Err(Errno::EFBIG), "{large:#x}");
    }
    assert_eq!(region.fd.fallocate(0, size, size), Err(Errno::EINVAL));
    assert_eq!(region.fd.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, size), Err(Errno::EOPNOTSUPP));
    assert_eq!(region.fd.punch(0, size), Err(Errno::EOPNOTSUPP));
    // Without a size there is nothing to map, and nothing to map into.
    assert_eq!(region.fd.map(granule(), RW, SHARED).unwrap_err(), Errno::EINVAL);
    assert_eq!(region.map(0, PAGE, RW, SHARED | ANON, -1, 0), Err(Errno::EINVAL));
    assert_eq!(region.unmap(0, PAGE), Err(Errno::EINVAL));
    // The largest: all of an address space but what is below the first granule and the last.
    region.fd.truncate((1 << 47) - 2 * size).unwrap();
}

fn attaching_wrongly() {
    let region = with_memory();
    let (size, fd) = (region.size, region.fd.raw());
    let place = Map::reserve(size, size);
    let fixed = |address, length, flags, offset| mmap(address, length, RW, flags | FIXED, fd, offset);
    assert_eq!(fixed(place.address + PAGE, size, SHARED, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address + (1 << 30), size, SHARED, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address, size / 2, SHARED, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address, size - PAGE, SHARED, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address, 2 * size, SHARED, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address, size, SHARED, PAGE as i64), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address, size, PRIVATE, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(place.address, size, SHARED | libc::MAP_FIXED_NOREPLACE, 0), Err(Errno::EEXIST));
    assert_eq!(mmap(0, 0, RW, SHARED, fd, 0), Err(Errno::EINVAL));
    assert_eq!(mmap(0, size, RW, SHARED | libc::MAP_32BIT, fd, 0), Err(Errno::ENOMEM));
    assert_eq!(mmap(0, size, RW, SHARED | libc::MAP_HUGETLB, fd, 0), Err(Errno::EINVAL));
    assert_eq!(fixed(1 << 47, size, SHARED, 0), Err(Errno::ENOMEM));
    // What was reserved is still there, and gives way to the right request.
    assert_eq!(fault::read(place.address), Err(Fault::forbidden(place.address)));
    assert_eq!(fixed(place.address, size, SHARED, 0), Ok(place.address));
    assert_eq!(fault::read(place.address + AT), Ok(0));
}

fn mapping_inside_wrongly() {
    ready();
    let region = Region::new();
    let (size, file) = (region.size, Fd::of_pages(2));
    let anonymous = |at, len, flags| region.map(at, len, RW, flags | ANON, -1, 0);
    for (at, len) in [
        (PAGE / 2, PAGE),
        (0, 0),
        (size, PAGE),
        (size - PAGE, 2 * PAGE),
        (0, size + PAGE),
        (usize::MAX - PAGE + 1, PAGE),
        (0, usize::MAX),
    ] {
        assert_eq!(anonymous(at, len, SHARED), Err(Errno::EINVAL), "{at:#x} {len:#x}");
    }
    for flags in
        [0, SHARED | PRIVATE | 8, libc::MAP_GROWSDOWN | PRIVATE, libc::MAP_LOCKED | SHARED, 1 << 30 | SHARED]
    {
        assert_eq!(anonymous(0, PAGE, flags), Err(Errno::EINVAL), "{flags:#x}");
    }
    let bare = |flags: i32| {
        let (prot, flags) = (RW as u32, (flags | ANON) as u32);
        region.ioctl(
            CREATE_MAPPING,
            &NewMapping { region_offset: 0, size: PAGE as u64, offset: 0, prot, flags, fd: -1 },
        )
    };
    assert_eq!(bare(SHARED), Err(Errno::EINVAL), "the place is given: MAP_FIXED");
    assert_eq!(bare(SHARED | libc::MAP_FIXED_NOREPLACE), Ok(()));
    assert_eq!(bare(SHARED | libc::MAP_FIXED_NOREPLACE), Err(Errno::EEXIST));
    let of = |fd: i32, prot, flags, offset| region.map(PAGE, PAGE, prot, flags, fd, offset);
    assert_eq!(of(-1, RW, SHARED, 0), Err(Errno::EBADF));
    assert_eq!(of(9999, RW, SHARED, 0), Err(Errno::EBADF));
    assert_eq!(of(file.raw(), RW, SHARED, 1), Err(Errno::EINVAL));
    assert_eq!(of(file.raw(), RW, SHARED, (i64::MAX as u64 & !4095) + 4096), Err(Errno::EOVERFLOW));
    assert_eq!(of(pipe(0).0.raw(), R, SHARED, 0), Err(Errno::ENODEV));
    assert_eq!(of(Fd::open("/tmp", libc::O_RDONLY).unwrap().raw(), R, SHARED, 0), Err(Errno::ENODEV));
    let path = format!("/proc/self/fd/{}", file.raw());
    assert_eq!(of(Fd::open(&path, libc::O_RDONLY).unwrap().raw(), RW, SHARED, 0), Err(Errno::EACCES));
    assert_eq!(of(Fd::open(&path, libc::O_WRONLY).unwrap().raw(), R, SHARED, 0), Err(Errno::EACCES));
    // Behind the end of the file there is nothing, as anywhere.
    of(file.raw(), RW, SHARED, 2 * PAGE as u64).unwrap();
    let map = region.attach();
    assert_eq!(fault::read(map.address + PAGE), Err(Fault::bus(map.address + PAGE)));
    assert_eq!(map.get(0), 0);
}

fn unmapping_wrongly() {
    let region = with_memory();
    for (at, len) in [(AT + 1, PAGE), (AT, 0), (region.size, PAGE), (0, region.size + PAGE), (AT, usize::MAX)]
    {
        assert_eq!(region.unmap(at, len), Err(Errno::EINVAL), "{at:#x} {len:#x}");
        assert_eq!(region.protect(at, len, R), Err(Errno::EINVAL), "{at:#x} {len:#x}");
    }
    // As munmap(2): where nothing is mapped, nothing is to be done. As mprotect(2): that is an error.
    assert_eq!(region.unmap(0, PAGE), Ok(()));
    assert_eq!(region.protect(0, PAGE, R), Err(Errno::ENOMEM));
    assert_eq!(region.protect(AT, PAGE, 64), Err(Errno::EINVAL));
    region.unmap(0, region.size).unwrap();
    assert_eq!(region.protect(AT, PAGE, R), Err(Errno::ENOMEM));
    // Rights that the file's descriptor did not give.
    let file = Fd::of_pages(1);
    let reader = Fd::open(&format!("/proc/self/fd/{}", file.raw()), libc::O_RDONLY).unwrap();
    region.map(AT, PAGE, R, SHARED, reader.raw(), 0).unwrap();
    assert_eq!(region.protect(AT, PAGE, RW), Err(Errno::EACCES));
}

fn unknown_commands() {
    let region = with_memory();
    for unknown in [command(3, 16), command(0, 16), command(1, 40), CREATE_MAPPING ^ 1 << 31, 0x7800] {
        assert_eq!(region.ioctl(unknown, &[0u64; 8]), Err(Errno::ENOTTY), "{unknown:#x}");
    }
    let reader = region.open(libc::O_RDONLY).unwrap();
    for known in [CREATE_MAPPING, UNMAP, PROTECT] {
        assert_eq!(mshare::ioctl(&reader, known, &[0u64; 8]), Err(Errno::EACCES));
    }
    let path = Fd::open(&region.path, libc::O_PATH).unwrap();
    assert_eq!(mshare::ioctl(&path, UNMAP, &[0u64; 8]), Err(Errno::EBADF));
    let info = Fd::open(&format!("{}/mshare_info", mshare::MOUNT), libc::O_RDWR).unwrap();
    assert_eq!(mshare::ioctl(&info, UNMAP, &[0u64; 8]), Err(Errno::ENOTTY));
}

fn bad_pointers() {
    let region = with_memory();
    let map = Map::anonymous(2 * PAGE);
    munmap(map.address + PAGE, PAGE).unwrap();
    for address in [0, map.address + PAGE - 8, map.address + PAGE, 1 << 47, usize::MAX - 8] {
        for command in [CREATE_MAPPING, UNMAP, PROTECT] {
            // SAFETY: the kernel is to refuse.
            let result = unsafe {
                sys::raw(libc::SYS_ioctl, [region.fd.raw() as usize, command as usize, address, 0, 0, 0])
            };
            assert_eq!(result, Err(Errno::EFAULT), "{address:#x}");
        }
    }
}

fn parts_of_an_attachment() {
    let region = with_memory();
    let (place, size) = (Map::reserve(3 * region.size, region.size), region.size);
    let start = place.address + size;
    let map = Map::at(start, size, RW, SHARED | FIXED, region.fd.raw(), 0).unwrap();
    map.set(AT, 1);
    for (at, len) in [(start, PAGE), (start + AT, PAGE), (start, size / 2), (start + size - PAGE, PAGE)] {
        assert_eq!(munmap(at, len), Err(Errno::EINVAL));
        assert_eq!(mprotect(at, len, R), Err(Errno::EINVAL));
        assert_eq!(madvise(at, len, libc::MADV_DONTFORK), Err(Errno::EINVAL));
        let over = mmap(at, len, RW, PRIVATE | ANON | FIXED, -1, 0);
        assert_eq!(over, Err(Errno::EINVAL));
    }
    for flags in [0, libc::MREMAP_MAYMOVE] {
        assert_eq!(mremap(start, size, 2 * size, flags, 0), Err(Errno::EINVAL));
        assert_eq!(mremap(start + AT, PAGE, 2 * PAGE, flags, 0), Err(Errno::EINVAL));
        assert_eq!(mremap(start, size, PAGE, flags, 0), Err(Errno::EINVAL));
    }
    // SAFETY: the kernel is to refuse.
    let remapped = unsafe { sys::raw(libc::SYS_remap_file_pages, [start + AT, PAGE, 0, 0, 0, 0]) };
    assert_eq!(remapped, Err(Errno::EINVAL));
    assert_eq!(map.get(AT), 1);
    // With its neighbours it goes as a whole.
    munmap(place.address, place.length).unwrap();
    assert_eq!(fault::read(start + AT), Err(Fault::unmapped(start + AT)));
}

fn no_region_in_a_region() {
    let region = with_memory();
    let inner = Region::new();
    for fd in [inner.fd.raw(), region.fd.raw()] {
        assert_eq!(region.map(0, region.size, RW, SHARED, fd, 0), Err(Errno::EINVAL));
        assert_eq!(region.map(0, PAGE, RW, SHARED, fd, 0), Err(Errno::EINVAL));
    }
    assert_eq!(region.attach().get(AT), 0);
}

fn permissions_of_the_file() {
    let region = with_memory();
    let path = sys::c_string(&region.path);
    // SAFETY: NUL-terminated.
    check(unsafe { libc::chmod(path.as_ptr(), 0o640) }).unwrap();
    // SAFETY: as above.
    check(unsafe { libc::chown(path.as_ptr(), 1000, 1001) }).unwrap();
    let as_user = |uid: u32, gid: u32, work: &dyn Fn()| {
        child::in_child(|| {
            // SAFETY: takes integers, and an empty list.
            unsafe {
                check(libc::setgroups(0, std::ptr::null())).unwrap();
                check(libc::setgid(gid)).unwrap();
                check(libc::setuid(uid)).unwrap();
            }
            work();
        });
    };
    as_user(1000, 1000, &|| {
        let map = region.open(libc::O_RDWR).unwrap().map(region.size, RW, SHARED).unwrap();
        assert_eq!(fault::write(map.address + AT, 1), Ok(()));
    });
    as_user(1002, 1001, &|| {
        assert_eq!(region.open(libc::O_RDWR).unwrap_err(), Errno::EACCES);
        let reader = region.open(libc::O_RDONLY).unwrap();
        let map = reader.map(region.size, R, SHARED).unwrap();
        assert_eq!(fault::read(map.address + AT), Ok(1));
        assert_eq!(reader.map(region.size, RW, SHARED).unwrap_err(), Errno::EACCES);
    });
    as_user(1003, 1003, &|| {
        assert_eq!(region.open(libc::O_RDONLY).unwrap_err(), Errno::EACCES);
        // The root is for all to make files in, and for nobody to remove others'.
        let own = Region::new();
        own.map_shared(AT, PAGE);
        assert_eq!(own.attach().get(AT), 0);
        assert_eq!(std::fs::remove_file(&region.path).unwrap_err().raw_os_error(), Some(libc::EPERM));
    });
}

fn address_space_limit() {
    let region = with_memory();
    child::in_child(|| {
        let limit = |bytes: u64| {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: the limit lives through the call.
            check(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }).unwrap();
        };
        let size = status(pid(), "VmSize") << 10;
        limit(size + region.size as u64 / 2);
        assert_eq!(region.try_attach(RW).unwrap_err(), Errno::ENOMEM);
        limit(size + region.size as u64 + (64 << 20));
        let map = region.attach();
        assert!(status(pid(), "VmSize") << 10 >= region.size as u64);
        // What is mapped inside is no further address space.
        region.map(1 << 35, 1 << 36, RW, SHARED | ANON | libc::MAP_NORESERVE, -1, 0).unwrap();
        assert_eq!(map.get(1 << 35), 0);
        region.unmap(1 << 35, 1 << 36).unwrap();
    });
}

fn locked_memory() {
    let region = with_memory();
    let map = region.attach();
    let lock = |at: usize, len: usize| {
        // SAFETY: locks what is mapped.
        check(unsafe { libc::mlock((map.address + at) as *const _, len) }).map(drop)
    };
    lock(AT, 2 * PAGE).unwrap();
    assert_eq!(mincore(map.address + AT, 2 * PAGE).unwrap(), [true; 2]);
    assert_eq!(lock(0, PAGE), Err(Errno::ENOMEM), "nothing is mapped inside");
    // Not the process's alone, so not on its account.
    assert_eq!(status(pid(), "VmLck"), 0);
    // SAFETY: as above.
    check(unsafe { libc::munlock((map.address + AT) as *const _, PAGE) }).unwrap();
    let populated = Map::new(region.size, RW, SHARED | libc::MAP_POPULATE, region.fd.raw(), 0).unwrap();
    assert_eq!(populated.get(AT), 0);
}

fn advice() {
    let region = with_memory();
    let map = region.attach();
    map.set(AT, 1);
    let at = map.address + AT;
    for harmless in
        [libc::MADV_WILLNEED, libc::MADV_COLD, libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE]
    {
        assert_eq!(madvise(at, PAGE, harmless), Ok(()), "{harmless}");
    }
    // It would take the page from the others, too.
    for harmful in [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_REMOVE] {
        assert_eq!(madvise(at, PAGE, harmful), Err(Errno::EINVAL), "{harmful}");
    }
    assert_eq!(madvise(map.address, PAGE, libc::MADV_POPULATE_READ), Err(Errno::ENOMEM));
    assert_eq!(madvise(map.address, map.length, libc::MADV_DONTDUMP), Ok(()));
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let flags =
        smaps.split(&region.path).nth(1).unwrap().lines().find(|line| line.starts_with("VmFlags:")).unwrap();
    assert!(flags.contains(" dd"), "{flags}");
    assert_eq!(map.get(AT), 1);
    assert_eq!(mincore(at, PAGE).unwrap(), [true]);
    assert_eq!(mincore(map.address, PAGE), Err(Errno::ENOMEM));
    // SAFETY: the attachment as a whole.
    check(unsafe { libc::msync(map.address as *mut _, map.length, libc::MS_SYNC) }).unwrap();
}

fn what_maps_show() {
    let region = with_memory();
    let (map, reader) = (region.attach(), region.try_attach(R).unwrap());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = |map: &Map| {
        let start = format!("{:x}-{:x} ", map.address, map.address + map.length);
        maps.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{maps}"))
    };
    let inode = region.fd.stat().st_ino.to_string();
    for (map, rights) in [(&map, "rw-s"), (&reader, "r--s")] {
        let words: Vec<_> = line(map).split_whitespace().collect();
        assert_eq!(words[1..3], [rights, "00000000"]);
        assert_eq!(words[4..], [inode.as_str(), region.path.as_str()]);
    }
    // What is inside is told by the descriptor.
    region.map(1 << 31, PAGE, R, PRIVATE | ANON, -1, 0).unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", region.fd.raw())).unwrap();
    let mappings: Vec<_> = info.lines().filter_map(|line| line.strip_prefix("mapping:\t")).collect();
    assert_eq!(
        mappings,
        [
            format!("{:x}-{:x} rw-s 4096", AT, AT + 2 * PAGE),
            format!("{:x}-{:x} r--p 4096", 1u64 << 31, (1u64 << 31) + 4096),
        ]
    );
    assert!(info.contains("attachments:\t2\n"), "{info}");
}

/// A number of the region's part of smaps, in kB.
fn smaps(region: &Region, name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let part = text.split(&region.path).nth(1).expect("the region in smaps");
    let line = part.lines().find(|line| line.starts_with(name)).expect("a line of smaps");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn what_smaps_show() {
    ready();
    let region = Region::new();
    region.map_shared(AT, 64 * PAGE);
    let map = region.attach();
    // All of the program is in from here on: it lies on a tmpfs.
    sys::faults();
    let own = status(pid(), "RssShmem");
    assert_eq!(smaps(&region, "KernelPageSize:"), 4);
    (0..64).for_each(|page| map.set(AT + page * PAGE, 1));
    assert_eq!(smaps(&region, "Size:"), region.size as u64 >> 10);
    assert_eq!((smaps(&region, "Rss:"), smaps(&region, "Pss:")), (256, 256));
    child::in_child(|| {
        assert_eq!((smaps(&region, "Rss:"), smaps(&region, "Pss:")), (256, 128));
        assert_eq!((smaps(&region, "Shared_Dirty:"), smaps(&region, "Private_Dirty:")), (256, 0));
    });
    // It is the region's, and charged there once: no process has it in its resident set.
    assert_eq!(status(pid(), "RssShmem"), own);
    assert_eq!(region.fd.stat().st_blocks, 64 * 8);
}

fn reading_and_writing_the_file() {
    let region = with_memory();
    let mut byte = [0];
    assert_eq!(region.fd.read(&mut byte), Err(Errno::EINVAL));
    assert_eq!(region.fd.write(&byte), Err(Errno::EINVAL));
    let info = Fd::open(&format!("{}/mshare_info", mshare::MOUNT), libc::O_RDWR).unwrap();
    assert_eq!(info.write(&byte), Err(Errno::EIO));
    assert_eq!(info.map(PAGE, R, SHARED).unwrap_err(), Errno::ENODEV);
}

fn names() {
    ready();
    let region = Region::new();
    let other = format!("{}-renamed", region.path);
    std::fs::rename(&region.path, &other).unwrap();
    let again = format!("{}-linked", region.path);
    std::fs::hard_link(&other, &again).unwrap();
    region.map_shared(AT, PAGE);
    region.attach().set(AT, 3);
    let linked = Fd::open(&again, libc::O_RDWR).unwrap().map(region.size, R, SHARED).unwrap();
    assert_eq!(linked.get(AT), 3);
    std::fs::remove_file(&other).unwrap();
    std::fs::remove_file(&again).unwrap();
    assert_eq!(linked.get(AT), 3);
    assert_eq!(
        mmap(0, region.size, NONE, SHARED, region.fd.raw(), 0).map(|at| munmap(at, region.size)),
        Ok(Ok(()))
    );
}

fn seek_and_sync() {
    let region = with_memory();
    // SAFETY: takes integers.
    assert_eq!(check(unsafe { libc::lseek(region.fd.raw(), 0, libc::SEEK_END) }), Err(Errno::ESPIPE));
    // SAFETY: takes integers.
    check(unsafe { libc::fsync(region.fd.raw()) }).unwrap();
}
