//! Advice for PostgreSQL's main memory on base pages, by what the server's own settings say.

use super::base_pages::{is_in_place, not_in_place};
use super::{Advice, Pages, Step, Subject, sources};
use crate::audit::pools::Pool;
use crate::audit::postgres::Server;
use crate::audit::report::FileReport;
use crate::output::human;
use crate::plan::postgres::{HugePages, Place, Settings};

/// What is known of the server and of the pools that it could take from.
pub struct Case<'a> {
    /// Its memory.
    pub file: &'a FileReport,
    /// The server; `None` where it is not known.
    pub server: Option<&'a Server>,
    /// All pools.
    pub pools: &'a [Pool],
    /// That of the size which the server takes when it names none.
    pub pool: &'a Pool,
    /// Bytes of the memory that are there.
    pub resident: u64,
}

/// How it gets on huge pages.
pub fn advise(case: &Case, subject: Subject, gain: u64) -> Advice {
    let settings = case.server.and_then(|server| server.settings.as_ref());
    let wanted = settings.and_then(|settings| settings.huge_page_size().ok()).unwrap_or(0);
    let named = case.pools.iter().find(|pool| pool.page_size == wanted);
    let pool = named.unwrap_or(case.pool);
    let count = case.file.size.div_ceil(pool.page_size);
    let mut steps = Steps { case, steps: Vec::new() };
    if let Some(settings) = settings {
        steps.contradictions(settings, wanted != 0 && named.is_none());
    } else {
        steps.steps.push(Step::by_hand(
            "Check with SHOW that shared_memory_type is mmap, its default: with sysv there are no huge \
             pages, and huge_pages=on ends with FATAL.",
        ));
    }
    steps.ask(settings);
    steps.pool(pool, count);
    steps.restart(&subject);
    steps.check(pool, count);
    Advice {
        id: "huge-pages",
        situation: situation(case.file, settings, pool, count),
        subject,
        steps: steps.steps,
        gain,
        cost: (count * pool.page_size).saturating_sub(case.resident),
        frees: 0,
        pages: is_in_place(case).then_some(Pages { size: pool.page_size, count }),
        source: sources::POSTGRESQL,
    }
}

fn situation(file: &FileReport, settings: Option<&Settings>, pool: &Pool, count: u64) -> String {
    let mut text = format!(
        "{} of shared memory on base pages cost {} of page tables in {}; on huge pages {}.",
        human::bytes(file.size),
        human::bytes(file.bytes.now),
        human::processes(file.processes),
        human::bytes(file.bytes.huge)
    );
    let Some(settings) = settings else { return text };
    let size = human::bytes(pool.page_size);
    let available = pool.available();
    text += &match settings.huge_pages() {
        HugePages::Try if settings.is_sysv() => {
            " huge_pages is try, and shared_memory_type=sysv keeps it from taking any; it does not say so."
                .to_string()
        }
        HugePages::Try if available < count => format!(
            " huge_pages is try: when it started there were too few, and it does not say so. It takes {} \
             pages of {size}; {} are free and not promised now, {} too few.",
            human::count(count),
            human::count(available),
            human::count(count - available)
        ),
        HugePages::Try => format!(
            " huge_pages is try: when it started there were too few, and it does not say so. Now there are \
             {}, and it takes {}.",
            human::count(available),
            human::count(count)
        ),
        HugePages::Off => format!(" huge_pages is off{}.", place(settings, "huge_pages")),
        HugePages::On => {
            " huge_pages is on, but was not when it started: where pages are missing the next start ends \
             with FATAL."
                .to_string()
        }
    };
    text
}

/// Where a setting stands, in words.
fn place(settings: &Settings, name: &str) -> &'static str {
    match settings.place(name) {
        Some(Place::CommandLine) => " on its command line",
        Some(Place::AlterSystem) => " by ALTER SYSTEM (postgresql.auto.conf)",
        Some(Place::File) => " in its configuration file",
        None => "",
    }
}

struct Steps<'a> {
    case: &'a Case<'a>,
    steps: Vec<Step>,
}

impl Steps<'_> {
    /// Sets a setting for the next start, wherever it stands.
    fn set(&mut self, settings: Option<&Settings>, name: &str, value: &str, why: &str) {
        if settings.and_then(|settings| settings.place(name)) == Some(Place::CommandLine) {
            self.steps.push(Step::by_hand(format!(
                "{why} {name} stands on the server's command line, above which no file has a say: change it \
                 there to {value} (its unit, or the options of pg_ctl -o)."
            )));
            return;
        }
        let command = self.case.server.and_then(|server| server.alter_system(name, value));
        self.steps.push(match command {
            Some(command) => Step::run(why, [command]),
            None => Step::by_hand(format!(
                "{why} As a superuser of the server: ALTER SYSTEM SET {name} = '{value}'"
            )),
        });
    }

    fn contradictions(&mut self, settings: &Settings, size_is_missing: bool) {
        if settings.is_sysv() {
            self.set(
                Some(settings),
                "shared_memory_type",
                "mmap",
                &format!(
                    "Let its memory be mapped: shared_memory_type is sysv{}, with which there are no huge \
                     pages, and huge_pages=on ends with FATAL.",
                    place(settings, "shared_memory_type")
                ),
            );
        }
        if size_is_missing {
            self.set(
                Some(settings),
                "huge_page_size",
                "0",
                &format!(
                    "Take the size that this host has: huge_page_size names another{}.",
                    place(settings, "huge_page_size")
                ),
            );
        }
    }

    fn ask(&mut self, settings: Option<&Settings>) {
        if settings.is_none_or(|settings| settings.huge_pages() == HugePages::Off) {
            self.set(
                settings,
                "huge_pages",
                "try",
                "Let it ask for huge pages. With try it starts on base pages where they are too few, and \
                 does not say so; with on it then ends with FATAL. So take try now, and on when it is known \
                 to work.",
            );
        }
    }

    fn pool(&mut self, pool: &Pool, count: u64) {
        let size = human::bytes(pool.page_size);
        if !is_in_place(self.case) && pool.available() < count {
            self.steps.push(not_in_place(self.case.file.size, self.case.resident, count, pool));
            return;
        }
        self.steps.push(if pool.available() >= count {
            Step::by_hand(format!(
                "The pool has {} pages of {size} that nobody has been promised, and it takes {}: nothing to do.",
                human::count(pool.available()),
                human::count(count)
            ))
        } else {
            Step::by_hand(format!(
                "Give the pool {} pages of {size} for it, and check that it has got them: see grow-pool. Do \
                 not go on before.",
                human::count(count)
            ))
        });
    }

    fn restart(&mut self, subject: &Subject) {
        let unit = subject.units.first().map_or("", String::as_str);
        let what = "Start it again: a reload does not change its memory.";
        self.steps.push(match self.case.server.and_then(|server| server.restart(unit)) {
            Some(command) => Step::run(what, [command]),
            None => Step::by_hand(format!(
                "{what} (systemctl restart, for a unit of a user's own systemctl --user -M USER@ restart, \
                 pg_ctl restart, or its container)"
            )),
        });
    }

    fn check(&mut self, pool: &Pool, count: u64) {
        self.steps.push(Step::run(
            format!(
                "Check that it has them: {} pages more are in use or promised than before (total less free, \
                 and Rsvd), and roundtable audit shows its memory on huge pages. PostgreSQL 17 and later \
                 say SHOW huge_pages_status.",
                human::count(count)
            ),
            [if pool.is_default {
                "grep HugePages_ /proc/meminfo".to_string()
            } else {
                format!("grep . /sys/kernel/mm/hugepages/hugepages-{}kB/*", pool.page_size >> 10)
            }],
        ));
    }
}
