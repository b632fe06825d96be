//! Plots as SVG text.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (640, 360);
/// On the right: what each line is. Among the lines it would hide some.
const LEGEND: u32 = 110;
/// Its letters are as wide, and the sample and a margin beside them.
const LETTER: u32 = 6;
const SAMPLE: u32 = 30;

/// A line of a plot.
pub struct Line {
    /// A subject, or what else the line is of.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// How the axes are called, and their least values.
pub struct Axes<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// What the horizontal axis is.
    pub x: &'a str,
    /// What the vertical axis is.
    pub y: &'a str,
    /// How its values are written.
    pub write_x: fn(f64) -> String,
    /// As `write_x`.
    pub write_y: fn(f64) -> String,
}

/// Colours that people with any colour vision tell apart (Okabe and Ito), by subject; by place for what is none.
fn colour(name: &str, row: usize) -> RGBColor {
    const OTHERS: [&str; 4] = ["file-tables", "file-lock", "unfenced", ""];
    match name {
        "unfenced" => RGBColor(204, 121, 167),
        "file-lock" => RGBColor(213, 94, 0),
        "vma-lock" => RGBColor(230, 159, 0),
        "file-tables" => RGBColor(0, 114, 178),
        "linux" => RGBColor(60, 60, 60),
        "" => RGBColor(0, 158, 115),
        _ => colour(OTHERS[row % OTHERS.len()], row),
    }
}

/// A plot with logarithmic axes; nothing when no point has a logarithm.
///
/// # Errors
///
/// When it cannot be drawn.
pub fn log_log(axes: &Axes, lines: &[Line]) -> Result<Option<String>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    // A logarithm has no zero.
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.filter(|value| *value > 0.0).fold(None, |ends: Option<(f64, f64)>, value| match ends {
            None => Some((value, value)),
            Some((low, high)) => Some((low.min(value), high.max(value))),
        })
    };
    let (Some(x), Some(y)) = (ends(&mut points().map(|p| p.0)), ends(&mut points().map(|p| p.1))) else {
        return Ok(None);
    };
    let mut svg = String::new();
    draw(&mut svg, axes, lines, (x.0, x.1.max(x.0 * 2.0)), (y.0 / 1.5, y.1.max(y.0 * 2.0) * 1.5))
        .map_err(|error| anyhow!("{}: {error}", axes.title))?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    axes: &Axes,
    lines: &[Line],
    x: (f64, f64),
    y: (f64, f64),
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let plain = |error: DrawingAreaErrorKind<_>| error.to_string();
    root.fill(&WHITE).map_err(plain)?;
    let letters = lines.iter().map(|line| line.name.len() as u32).max().unwrap_or(0);
    let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND.max(SAMPLE + LETTER * letters));
    let mut chart = ChartBuilder::on(&plot)
        .caption(axes.title, ("sans-serif", 16))
        .margin(10)
        // Half of the last tick's label.
        .margin_right(20)
        .x_label_area_size(42)
        .y_label_area_size(74)
        .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())
        .map_err(plain)?;
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&|value| (axes.write_x)(*value))
        .y_label_formatter(&|value| (axes.write_y)(*value))
        .label_style(("sans-serif", 12))
        .light_line_style(RGBColor(245, 245, 245))
        .bold_line_style(RGBColor(225, 225, 225))
        .draw()
        .map_err(plain)?;
    for (row, line) in lines.iter().enumerate() {
        let colour = colour(&line.name, row);
        let style = colour.stroke_width(2);
        let points: Vec<(f64, f64)> =
            line.points.iter().copied().filter(|p| p.0 > 0.0 && p.1 > 0.0).collect();
        chart.draw_series(LineSeries::new(points.clone(), style)).map_err(plain)?;
        let height = 50 + 20 * row as i32;
        legend.draw(&PathElement::new([(0, height), (18, height)], style)).map_err(plain)?;
        let name = Text::new(line.name.as_str(), (24, height - 7), ("sans-serif", 12));
        legend.draw(&name).map_err(plain)?;
        if points.len() <= 12 {
            let dots = points.into_iter().map(|point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots).map_err(plain)?;
        }
    }
    root.present().map_err(plain)?;
    drop(chart);
    drop(root);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_lines_and_none_without_points() {
        let axes = Axes {
            title: "cost & sharers",
            x: "sharers",
            y: "time",
            write_x: |value| format!("{value:.0}"),
            write_y: |value| format!("{value:.0}"),
        };
        let line = |points: &[(f64, f64)]| Line { name: "linux".into(), points: points.to_vec() };
        let svg = log_log(&axes, &[line(&[(1.0, 10.0), (100.0, 2000.0)])]).unwrap().unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("<polyline") && svg.contains("cost &amp; sharers"));
        assert!(log_log(&axes, &[line(&[])]).unwrap().is_none());
        assert!(log_log(&axes, &[line(&[(0.0, 1.0)])]).unwrap().is_none());
    }
}
