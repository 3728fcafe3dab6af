//! A page that holds everything about one run or several: figures, and plots as SVG drawn by `plotters`. It needs nothing
//! from elsewhere, so that it can be sent to a colleague.
//!
//! Fails only when a plot cannot be drawn, which no figures of ours bring about.

use crate::results::Results;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::fmt::Debug;
use std::io;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1b1f24}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}pre{background:#f5f6f8;padding:1em;overflow-x:auto;font-size:13px}\
svg{width:100%;height:auto}p.note{color:#57606a}p.legend span{margin-right:1.5em;white-space:nowrap}";

const SIZE: (u32, u32) = (920, 360);

/// Colours that are told apart with any sight (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
];

/// The page of some runs.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn page(title: &str, runs: &[Results]) -> io::Result<String> {
    page_with_text(title, runs, "")
}

/// The page of some runs, with a text in front.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn page_with_text(title: &str, runs: &[Results], text: &str) -> io::Result<String> {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    if !text.is_empty() {
        page.push_str(&format!("<pre>{}</pre>\n", escape(text)));
    }
    for plot in plots(runs)? {
        let Plot { heading, note, svg, legend } = plot;
        page.push_str(&format!("<h2>{heading}</h2>\n<p class=\"note\">{note}</p>\n{svg}\n{legend}\n"));
    }
    for run in runs {
        page.push_str(&format!(
            "<h2>{}</h2>\n<pre>{}</pre>\n<pre>{}</pre>\n",
            escape(&run.label),
            escape(&run.to_string()),
            escape(&run.command)
        ));
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

/// A plot as it stands on the page.
struct Plot {
    heading: &'static str,
    note: &'static str,
    svg: String,
    legend: String,
}

/// A curve: its name and its points.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

fn plots(runs: &[Results]) -> io::Result<Vec<Plot>> {
    let percentiles: Vec<Curve> = runs
        .iter()
        .map(|run| {
            let curve = run.sent.latency.curve.iter().filter(|(quantile, _)| *quantile < 1.0);
            let points = curve.map(|(quantile, us)| (1.0 / (1.0 - quantile), *us as f64 / 1e3)).collect();
            Curve { name: run.label.clone(), points }
        })
        .collect();
    // Three curves of each run would be too many of several runs.
    let mut latency = over_time(runs, " p99", |point| point.p99_us as f64 / 1e3);
    if runs.len() <= 2 {
        latency.extend(over_time(runs, " p50", |point| point.p50_us as f64 / 1e3));
        latency.extend(over_time(runs, " max", |point| point.max_us as f64 / 1e3));
    }
    let answered =
        |curve: Curve| Curve { points: curve.points.into_iter().filter(|point| point.1 > 0.0).collect(), ..curve };
    let latency: Vec<Curve> = latency.into_iter().map(answered).collect();
    let queued = runs.iter().map(|run| {
        let points = run.points.iter().filter_map(|point| Some((point.at, point.queued? as f64))).collect();
        Curve { name: run.label.clone(), points }
    });
    let queued: Vec<Curve> = queued.filter(|curve| !curve.points.is_empty()).collect();
    let rate = over_time(runs, "", |point| point.acknowledged as f64 / point.length.max(1e-9));
    let flight = over_time(runs, "", |point| point.in_flight as f64);
    let all = [
        (
            "Latency by percentile",
            "Milliseconds from when a message was due to its final reply; the further right, the rarer.",
            draw_percentiles(&percentiles)?,
            &percentiles,
        ),
        (
            "Throughput over time",
            "Messages acknowledged per second.",
            draw_course(&rate, "messages per second", false)?,
            &rate,
        ),
        (
            "Latency over time",
            "Milliseconds, by the interval in which the reply came.",
            draw_course(&latency, "ms", true)?,
            &latency,
        ),
        ("Messages in flight", "Begun and not yet answered.", draw_course(&flight, "messages", false)?, &flight),
        (
            "Queue of the relay",
            "Messages that wait for delivery, by the relay's own count.",
            draw_course(&queued, "messages", false)?,
            &queued,
        ),
    ];
    let plot = |(heading, note, svg, curves): (_, _, Option<String>, &Vec<Curve>)| {
        Some(Plot { heading, note, svg: svg?, legend: legend(curves) })
    };
    Ok(all.into_iter().filter_map(plot).collect())
}

fn legend(curves: &[Curve]) -> String {
    let mut text = "<p class=\"legend\">".to_owned();
    for (number, curve) in curves.iter().enumerate() {
        let RGBColor(red, green, blue) = COLOURS[number % COLOURS.len()];
        let name = escape(&curve.name);
        text.push_str(&format!("<span><b style=\"color:rgb({red},{green},{blue})\">&#9632;</b> {name}</span> "));
    }
    text + "</p>"
}

fn over_time(runs: &[Results], suffix: &str, figure: fn(&crate::send::tally::Point) -> f64) -> Vec<Curve> {
    let curve = |run: &Results| Curve {
        name: format!("{}{suffix}", run.label),
        points: run.points.iter().map(|point| (point.at, figure(point))).collect(),
    };
    runs.iter().map(curve).collect()
}

/// The highest values of all curves; None when there is nothing to see.
fn extent(curves: &[Curve]) -> Option<(f64, f64)> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let highest = |part: fn(&(f64, f64)) -> f64| all().map(part).fold(0.0, f64::max);
    (all().count() > 1).then(|| (highest(|point| point.0), highest(|point| point.1)))
}

fn draw_course(curves: &[Curve], unit: &str, by_powers: bool) -> io::Result<Option<String>> {
    let Some((x, y)) = extent(curves) else { return Ok(None) };
    let across = 0.0..x.max(0.1);
    let time = |seconds: &f64| format!("{seconds:.1} s");
    if by_powers {
        let value = |value: &f64| format!("{value:.2}");
        let up = (lowest(curves) * 0.9..y.max(0.01) * 1.1).log_scale();
        return draw(curves, across, up, unit, &time, &value).map(Some);
    }
    let value = |value: &f64| format!("{value:.0}");
    draw(curves, across, 0.0..y.max(1.0) * 1.05, unit, &time, &value).map(Some)
}

/// The lowest value of all curves, above 0.
fn lowest(curves: &[Curve]) -> f64 {
    curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).fold(f64::MAX, f64::min).max(0.001)
}

fn draw_percentiles(curves: &[Curve]) -> io::Result<Option<String>> {
    let Some((x, y)) = extent(curves) else { return Ok(None) };
    let percentile = |odds: &f64| {
        let digits = (odds.log10().round() as usize).saturating_sub(2);
        format!("{:.digits$} %", 100.0 * (1.0 - 1.0 / odds))
    };
    let value = |value: &f64| format!("{value:.2}");
    let across = (1.0..x.max(100.0)).log_scale();
    let up = (lowest(curves) * 0.9..y.max(0.01) * 1.1).log_scale();
    draw(curves, across, up, "ms", &percentile, &value).map(Some)
}

fn draw<X, Y>(
    curves: &[Curve],
    across: X,
    up: Y,
    unit: &str,
    across_label: &dyn Fn(&f64) -> String,
    up_label: &dyn Fn(&f64) -> String,
) -> io::Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(64)
            .build_cartesian_2d(across, up)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 228, 232))
            .y_desc(unit)
            .x_label_formatter(across_label)
            .y_label_formatter(up_label)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(failed)?;
        for (number, curve) in curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            chart.draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2))).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn failed(error: impl Debug) -> io::Error {
    io::Error::other(format!("a plot could not be drawn: {error:?}"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Latency;
    use crate::send::tally::Point;
    use std::time::Duration;

    #[test]
    fn a_page_is_whole_and_needs_nothing_from_elsewhere() {
        let mut latency = Latency::default();
        (1..5000).for_each(|us| latency.record(Duration::from_micros(us)));
        let mut run = Results { label: "a <b> & c".to_owned(), ..Results::default() };
        run.sent.latency = latency.distribution();
        let point = |number: u64| Point {
            at: number as f64 / 10.0,
            length: 0.1,
            acknowledged: number,
            p99_us: number,
            queued: Some(number),
            ..Point::default()
        };
        run.points = (1..20).map(point).collect();
        let page = page("title", &[run]).unwrap();
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(page.contains("a &lt;b&gt; &amp; c") && !page.contains("a <b>"), "names are escaped");
        for outside in ["http-equiv", "src=", "href=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_run_without_points_is_a_page_all_the_same() {
        assert!(page("empty", &[Results::default()]).unwrap().ends_with("</html>\n"));
    }
}
