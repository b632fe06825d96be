//! Metrics of the three questions, of what is advised, and of the audit itself.

use std::cmp::Reverse;

use super::{Metric, NAMED, OTHERS, name_of, some, stable, summed};
use crate::audit::answer::tables::Owner;
use crate::audit::report::Report;

pub(super) fn metrics(report: &Report) -> Vec<Metric> {
    let tables = &report.page_tables;
    let owners = |owners: &[Owner], label, name: fn(&Owner) -> String| {
        summed(owners.iter().map(|owner| (vec![(label, name(owner))], owner.bytes)))
    };
    let plain = |name, help, value: f64| Metric { name, help, samples: vec![(Vec::new(), value)] };
    let pool = |size: u64| vec![("page_size", size.to_string())];
    let advice = |value: fn(&crate::audit::advice::Advice) -> u64| {
        let mut advices: Vec<_> = report.advice.iter().filter(|advice| value(advice) > 0).collect();
        advices.sort_by_key(|advice| Reverse(value(advice)));
        summed(advices.into_iter().enumerate().map(|(place, advice)| {
            if place >= NAMED {
                return (
                    vec![("advice", advice.id.to_string()), ("file", OTHERS.to_string())],
                    value(advice),
                );
            }
            let subject = &advice.subject;
            let labels = vec![
                ("advice", advice.id.to_string()),
                ("program", some(&subject.programs)),
                ("unit", some(&subject.units)),
                ("file", stable(&subject.file)),
            ];
            (labels, value(advice))
        }))
    };
    vec![
        Metric {
            name: "roundtable_program_page_table_bytes",
            help: "Page tables of the programs that have most, each shared table once.",
            samples: owners(&tables.programs, "program", |owner| some(&owner.programs)),
        },
        Metric {
            name: "roundtable_unit_page_table_bytes",
            help: "Page tables of the units that have most, each shared table once.",
            samples: owners(&tables.units, "unit", |owner| some(&owner.units)),
        },
        plain(
            "roundtable_page_tables_remainder_bytes",
            "What of PageTables no process that was seen has.",
            tables.remainder as f64,
        ),
        Metric {
            name: "roundtable_pool_held_pages",
            help: "Huge pages by how they are held: mapped, private, file (which nobody has), open-file, unseen (nobody \
                in sight has it), descriptor, segment, or unexplained.",
            samples: summed(report.pools.iter().flat_map(|one| {
                let size = pool(one.pool.page_size);
                let with = move |hold: String| {
                    let mut labels = size.clone();
                    labels.push(("hold", hold));
                    labels
                };
                let unexplained = (with("unexplained".into()), one.account.unexplained);
                let held =
                    one.account.holders.iter().map(move |holder| (with(name_of(&holder.hold)), holder.pages));
                held.chain(std::iter::once(unexplained))
            })),
        },
        Metric {
            name: "roundtable_advice_saving_bytes",
            help: "Page tables that following an advice saves.",
            samples: advice(|advice| advice.gain),
        },
        Metric {
            name: "roundtable_advice_freed_bytes",
            help: "Huge pages that following an advice gives back to their pool.",
            samples: advice(|advice| advice.frees),
        },
        plain(
            "roundtable_audit_timestamp_seconds",
            "When the audit was made, in seconds since 1970.",
            report.seen.at_seconds as f64,
        ),
        plain(
            "roundtable_audit_duration_seconds",
            "How long the audit took.",
            report.seen.milliseconds as f64 / 1000.0,
        ),
        plain(
            "roundtable_audit_success",
            "1 when every process could be looked at, 0 when some are out of sight or were not reached in time.",
            f64::from(u8::from(report.seen.is_whole())),
        ),
    ]
}
