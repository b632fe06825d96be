//! The page with the plots: one file that needs no other.

use std::fmt::Write;

use anyhow::Result;
use guest_link::record::{Access, Operation, Record};

use super::figures::time;
use super::goals::{figures, verdicts};
use super::plots::{Axes, Line, log_log};
use super::{Measured, Results};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.good{color:#05672f}.bad{color:#a3150b}.plots{display:flex;flex-wrap:wrap;gap:12px}
pre{background:#f5f5f5;padding:.8em;overflow-x:auto}small{color:#666}";

/// What is drawn.
#[derive(Default)]
pub struct Page {
    pub html: String,
    /// The plots once more, as SVG files with these names.
    pub plots: Vec<(String, String)>,
}

/// Draws it.
pub fn draw(results: &Results) -> Result<Page> {
    let mut page = Page::default();
    let out = &mut page.html;
    let _ = write!(
        out,
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><title>Roundtable: sharing page tables, measured</title>\
         <style>{STYLE}</style><h1>Sharing page tables, measured</h1>\
         <p>Made by <code>{}</code> in {} s, on {}. Every kernel ran in the same machine: <code>{}</code>. \
         Emulated processors: compare the columns, not the absolute times.</p>",
        escape(&results.command),
        results.took,
        escape(&results.processor),
        escape(&results.machine)
    );
    releases(out, results);
    table(out, results);
    expected(out, results);
    delays(&mut page, results)?;
    costs(&mut page, results)?;
    memory(&mut page, results)?;
    cases(&mut page.html, results);
    failures(&mut page.html, results);
    page.html.push_str("</html>\n");
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn releases(out: &mut String, results: &Results) {
    out.push_str("<p>");
    for one in &results.subjects {
        let release = one.records.iter().find_map(|record| match record {
            Record::Machine { release, .. } => Some(release.as_str()),
            _ => None,
        });
        let _ = write!(out, "{}: {}. ", escape(&one.name), escape(release.unwrap_or("it did not start")));
    }
    out.push_str("</p>");
}

fn table(out: &mut String, results: &Results) {
    let linux = results.subjects.iter().find(|one| one.name == "linux");
    out.push_str("<h2>Figures</h2><table><tr><th></th>");
    for one in &results.subjects {
        let _ = write!(out, "<th>{}</th>", escape(&one.name));
    }
    out.push_str("<th>goal: file-tables / Linux</th></tr>");
    for figure in figures(results) {
        let _ = write!(out, "<tr><td>{}</td>", escape(&figure.name));
        let base = linux.and_then(|linux| figure.of(linux));
        for one in &results.subjects {
            let Some(value) = figure.of(one) else {
                out.push_str("<td>-</td>");
                continue;
            };
            let ratio = base.filter(|&base| base > 0.0 && one.name != "linux").map(|base| value / base);
            let shown = ratio.map(|ratio| format!(" <small>({ratio:.2})</small>")).unwrap_or_default();
            // Goals are for the protocol that we propose.
            let class = match (figure.goal, ratio) {
                (Some(goal), Some(ratio)) if one.name == "file-tables" => {
                    if ratio <= goal {
                        " class=\"good\""
                    } else {
                        " class=\"bad\""
                    }
                }
                _ => "",
            };
            let _ = write!(out, "<td{class}>{}{shown}</td>", figure.unit.write(value));
        }
        let goal = figure.goal.map(|goal| if goal == 0.0 { "0".into() } else { format!("&le; {goal}") });
        let _ = write!(out, "<td>{}</td></tr>", goal.unwrap_or_default());
    }
    out.push_str(
        "</table><p><small>In parentheses: divided by Linux's figure. Costs are the least of \
        several runs; all are in results.json.</small></p>",
    );
}

fn expected(out: &mut String, results: &Results) {
    out.push_str("<h2>What was expected</h2><ul>");
    for verdict in verdicts(results) {
        let (class, word) = if verdict.holds { ("good", "holds") } else { ("bad", "refuted") };
        let _ = write!(
            out,
            "<li><span class=\"{class}\">{word}</span>: {}. {}.</li>",
            escape(&verdict.claim),
            escape(&verdict.figures)
        );
    }
    out.push_str("</ul>");
}

fn plot(page: &mut Page, axes: &Axes, lines: &[Line]) -> Result<()> {
    if let Some(svg) = log_log(axes, lines)? {
        let _ = write!(page.html, "<figure style=\"margin:0\">{svg}</figure>");
        let words: Vec<&str> =
            axes.title.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        page.plots.push((format!("{}.svg", words.join("-")), svg));
    }
    Ok(())
}

/// The part of the accesses that took longer than a time.
fn survivors(histogram: &[(u64, u64)]) -> Vec<(f64, f64)> {
    let total: u64 = histogram.iter().map(|&(_, count)| count).sum();
    let mut left = total;
    let mut points = Vec::new();
    for &(upper, count) in histogram {
        points.push((upper as f64, left as f64 / total as f64));
        left -= count;
    }
    points
}

fn delays(page: &mut Page, results: &Results) -> Result<()> {
    page.html.push_str(
        "<h2>A bystander's delays</h2><p>Another process does something to the file again and again; how long a \
         bystander's accesses take that overlap it. Each line: the part of the accesses that took at least so long. \
         The bystander forgets its mapping's entries (MADV_DONTNEED) before each access to a present page.</p>\
         <div class=\"plots\">",
    );
    for (access, what) in [(Access::Present, "present page"), (Access::Fresh, "fresh page")] {
        for disturbance in ["none", "punch", "truncate", "mprotect", "fork", "exit"] {
            let cases = || results.subjects.iter().flat_map(|one| one.cases().map(move |case| (one, case)));
            let fits = |case: &super::figures::Case| case.access == access && case.disturbance == disturbance;
            let Some(most) = cases().filter(|(_, case)| fits(case)).map(|(_, case)| case.sharers).max()
            else {
                continue;
            };
            let lines: Vec<Line> = cases()
                .filter(|(_, case)| fits(case) && case.sharers == most)
                .map(|(one, case)| Line { name: one.name.clone(), points: survivors(case.histogram) })
                .collect();
            let title = format!("{what}, {disturbance}, {most} sharers");
            let axes = Axes {
                title: &title,
                x: "time",
                y: "part of the accesses",
                write_x: |value| time(value as u64),
                write_y: |value| format!("{} %", (value * 1e8).round() / 1e6),
            };
            plot(page, &axes, &lines)?;
        }
    }
    page.html.push_str("</div>");
    Ok(())
}

fn costs(page: &mut Page, results: &Results) -> Result<()> {
    page.html.push_str("<h2>Costs against the number of sharers</h2><div class=\"plots\">");
    let all = [
        Operation::Punch,
        Operation::Truncate,
        Operation::Mprotect,
        Operation::Fork,
        Operation::Start,
        Operation::Exit,
        Operation::Attach,
        Operation::Detach,
    ];
    for operation in all {
        let line = |one: &Measured| {
            let points = one.costs(operation).into_iter();
            let points = points.map(|(sharers, cost)| (f64::from(sharers), cost as f64)).collect();
            Line { name: one.name.clone(), points }
        };
        let lines: Vec<Line> = results.subjects.iter().map(line).collect();
        let axes = Axes {
            title: operation.name(),
            x: "processes that share the table",
            y: "least time",
            write_x: |value| format!("{value:.0}"),
            write_y: |value| time(value as u64),
        };
        plot(page, &axes, &lines)?;
    }
    page.html.push_str("</div>");
    Ok(())
}

fn memory(page: &mut Page, results: &Results) -> Result<()> {
    page.html.push_str(
        "<h2>Page-table memory</h2><p>What PageTables in /proc/meminfo grew by, all tables of the processes included. \
         The line \"without sharing\" is computed: the growth with the file's PMD tables once for each process.</p>\
         <div class=\"plots\">",
    );
    for (size, title) in [(1u64 << 30, "a file of 1 GiB"), (1 << 40, "a sparse file of 1 TiB")] {
        let mut lines: Vec<Line> = results
            .subjects
            .iter()
            .map(|one| {
                let points = one.tables(size).into_iter();
                let points =
                    points.map(|(sharers, growth)| (f64::from(sharers), mebibytes(growth))).collect();
                Line { name: one.name.clone(), points }
            })
            .collect();
        if let Some(one) = results.subjects.iter().find(|one| one.name == "linux") {
            let tables = size >> 30 << 12;
            let points = one.tables(size).into_iter();
            let points = points
                .map(|(sharers, growth)| {
                    let unshared = growth + tables * u64::from(sharers.saturating_sub(1));
                    (f64::from(sharers), mebibytes(unshared))
                })
                .collect();
            lines.push(Line { name: "without sharing".into(), points });
        }
        let axes = Axes {
            title,
            x: "processes",
            y: "growth of PageTables",
            write_x: |value| format!("{value:.0}"),
            // The ticks are powers of ten.
            write_y: |value| format!("{value} MiB"),
        };
        plot(page, &axes, &lines)?;
    }
    page.html.push_str("</div>");
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn cases(out: &mut String, results: &Results) {
    out.push_str(
        "<h2>All of a bystander's cases</h2><table><tr><th>kernel</th><th>access</th><th>disturbance</th>\
         <th>sharers</th><th>accesses</th><th>faults, all in all</th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr>",
    );
    for one in &results.subjects {
        for case in one.cases() {
            let access = match case.access {
                Access::Present => "present",
                Access::Fresh => "fresh",
            };
            let _ = write!(
                out,
                "<tr><td>{}</td><td>{access}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
                 <td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&one.name),
                escape(case.disturbance),
                case.sharers,
                case.accesses,
                case.faults,
                time(case.times.p50),
                time(case.times.p99),
                time(case.times.p999),
                time(case.times.max)
            );
        }
    }
    out.push_str("</table>");
}

fn failures(out: &mut String, results: &Results) {
    for one in &results.subjects {
        let notes = one.records.iter().filter_map(|record| match record {
            Record::Note { text } => Some(text),
            _ => None,
        });
        for note in notes {
            let _ = write!(out, "<p>{}: {}</p>", escape(&one.name), escape(note));
        }
        for failure in &one.failures {
            let _ = write!(out, "<h2>{} failed</h2><pre>{}</pre>", escape(&one.name), escape(failure));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_survivors_begin_with_all_and_fall() {
        let points = survivors(&[(100, 3), (1000, 1)]);
        assert_eq!(points, [(100.0, 1.0), (1000.0, 0.25)]);
        assert!(survivors(&[]).is_empty());
    }

    #[test]
    fn a_page_without_results_is_a_page() {
        let results = Results {
            began: 0,
            took: 0,
            command: "cargo xtask bench <quick>".into(),
            processor: "x".into(),
            machine: "y".into(),
            subjects: vec![Measured {
                name: "linux".into(),
                records: vec![],
                counted: Vec::new(),
                failures: vec!["a < b".into()],
            }],
        };
        let page = draw(&results).unwrap().html;
        assert!(page.contains("&lt;quick&gt;") && page.contains("a &lt; b"));
        assert!(!page.contains("http://") || page.contains("http://www.w3.org/2000/svg"));
    }
}
