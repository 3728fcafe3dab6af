//! A page that holds everything about one run or several: figures, and plots as SVG drawn by `plotters`. It needs nothing
//! from elsewhere, so that it can be sent to a colleague.
//!
//! Fails only when a plot cannot be drawn, which no figures of ours bring about.

use crate::report::Distribution;
use crate::results::{LedgerFigures, Results};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use ringpost::clock::UnixTime;
use ringpost::policy::trace::Date;
use std::fmt::Debug;
use std::io;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1b1f24}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}h3{font-size:1em;margin:1em 0 0}\
pre{background:#f5f6f8;padding:1em;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}\
svg{display:block;width:100%;height:auto}p.note{color:#57606a;margin:0}p.legend{margin:0}p.legend span{margin-right:1.5em;white-space:nowrap}\
div.course{display:grid;grid-template-columns:1fr 1fr;gap:0 1em}\
table{border-collapse:collapse;width:100%;font-size:14px}th,td{padding:.25em .5em;border-bottom:1px solid #e1e4e8;\
text-align:right;vertical-align:bottom}th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}";

/// A plot over the whole width of a page, and one that stands beside another, in pixels.
const WIDE: (u32, u32) = (920, 360);
const NARROW: (u32, u32) = (460, 250);

/// Colours that are told apart with any sight (Okabe and Ito, and Tol), one for each profile.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
    RGBColor(136, 34, 85),
    RGBColor(153, 153, 51),
    RGBColor(51, 34, 136),
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
    let mut page = head(title);
    if !text.is_empty() {
        page.push_str(&format!("<pre>{}</pre>\n", escape(text)));
    }
    page.push_str(&explanation(runs));
    for plot in percentiles(runs)?.into_iter().chain(course(runs, WIDE)?) {
        plot.append_to(&mut page, "h2");
    }
    for run in runs {
        page.push_str(&format!("<h2>{}</h2>\n", escape(&run.label)));
        append_figures(&mut page, run);
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

/// The page of runs that have little in common but the relay: a table, and the course of each by itself.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn page_of_profiles(title: &str, runs: &[Results]) -> io::Result<String> {
    let mut page = head(title);
    page.push_str(&explanation(runs));
    page.push_str(&table(runs));
    if let Some(plot) = percentiles(runs)? {
        plot.append_to(&mut page, "h2");
    }
    for run in runs {
        page.push_str(&format!("<h2>{}</h2>\n<p>{}</p>\n", escape(&run.label), escape(&run.about)));
        page.push_str("<div class=\"course\">\n");
        for plot in course(std::slice::from_ref(run), NARROW)? {
            page.push_str("<div>");
            plot.append_to(&mut page, "h3");
            page.push_str("</div>\n");
        }
        page.push_str("</div>\n");
        append_figures(&mut page, run);
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn head(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{title}</h1>\n"
    )
}

/// What a reader has to know of all figures.
fn explanation(runs: &[Results]) -> String {
    let Some(first) = runs.iter().map(|run| run.began).min() else { return String::new() };
    let began = Date(UnixTime::from_millis(first * 1000));
    let about = match runs {
        [run] if !run.about.is_empty() => format!("<p>{}</p>\n", escape(&run.about)),
        _ => String::new(),
    };
    format!(
        "{about}<p>Load by ringpost-load, begun {began}. A message's latency counts from when it was due (in a closed loop: begun) \
         until the final reply to its content was read.</p>\n"
    )
}

/// One line for each run.
fn table(runs: &[Results]) -> String {
    let mut text = "<table>\n<tr><th>profile</th><th>messages</th><th>per second</th><th>p50, ms</th><th>p99, ms</th>\
                    <th>p99.9, ms</th><th>longest, ms</th><th>relay's CPU, us per message</th><th>ledger</th></tr>\n"
        .to_owned();
    for run in runs {
        let (sent, ms) = (&run.sent, |us: u64| format!("{:.2}", us as f64 / 1e3));
        let relay = run.relay.map_or_else(String::new, |relay| format!("{:.1}", relay.cpu_us_per_message));
        let ledger = match run.ledger {
            None => String::new(),
            Some(ledger) if ledger.is_clean() => "clean".to_owned(),
            Some(ledger) => {
                let LedgerFigures { lost, repeated, damaged, strange, .. } = ledger;
                format!("lost {lost}, repeated {repeated}, damaged {damaged}, strange {strange}")
            }
        };
        let latency = &sent.latency;
        let times = [latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us].map(ms);
        let label = escape(&run.label);
        text.push_str(&format!(
            "<tr><td>{label}</td><td>{}</td><td>{:.0}</td><td>{}</td><td>{relay}</td><td>{ledger}</td></tr>\n",
            sent.acknowledged,
            sent.per_second,
            times.join("</td><td>")
        ));
    }
    text + "</table>\n"
}

fn append_figures(page: &mut String, run: &Results) {
    page.push_str(&format!("<pre>{}\n{}</pre>\n", escape(&run.to_string()), escape(&run.command)));
}

/// A plot as it stands on the page.
struct Plot {
    heading: &'static str,
    note: &'static str,
    svg: String,
    legend: String,
}

impl Plot {
    fn append_to(&self, page: &mut String, level: &str) {
        let Plot { heading, note, svg, legend } = self;
        page.push_str(&format!("<{level}>{heading}</{level}>\n<p class=\"note\">{note}</p>\n{svg}\n{legend}\n"));
    }
}

/// A curve: its name and its points.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

fn percentiles(runs: &[Results]) -> io::Result<Option<Plot>> {
    let curve = |name: String, distribution: &Distribution| {
        let curve = distribution.curve.iter().filter(|(quantile, _)| *quantile < 1.0);
        Curve { name, points: curve.map(|(quantile, us)| (1.0 / (1.0 - quantile), *us as f64 / 1e3)).collect() }
    };
    let mut curves: Vec<Curve> = runs.iter().map(|run| curve(run.label.clone(), &run.sent.latency)).collect();
    for run in runs {
        curves.extend(run.half.iter().map(|half| curve(format!("{}: bare sync", run.label), &half.bare_sync)));
    }
    let note = "How many of a hundred messages had their final reply after so many milliseconds or less.";
    let svg = draw_percentiles(&curves)?;
    Ok(svg.map(|svg| Plot { heading: "Latency by percentile", note, svg, legend: legend(&curves) }))
}

/// How runs went on.
fn course(runs: &[Results], size: (u32, u32)) -> io::Result<Vec<Plot>> {
    // Three curves of each run would be too many of several runs.
    let mut latency = over_time(runs, "p99", |point| point.p99_us as f64 / 1e3);
    if runs.len() <= 2 {
        // What is lower is drawn later, so that it is seen where both are the same.
        latency.splice(0..0, over_time(runs, "max", |point| point.max_us as f64 / 1e3));
        latency.extend(over_time(runs, "p50", |point| point.p50_us as f64 / 1e3));
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
            "Throughput over time",
            "Messages acknowledged per second.",
            draw_course(&rate, "messages per second", false, size)?,
            &rate,
        ),
        (
            "Latency over time",
            "Of the messages answered in each interval.",
            draw_course(&latency, "ms", true, size)?,
            &latency,
        ),
        ("Messages in flight", "Begun and not yet answered.", draw_course(&flight, "messages", false, size)?, &flight),
        (
            "Queue of the relay",
            "Messages that wait for delivery, by the relay's own count.",
            draw_course(&queued, "messages", false, size)?,
            &queued,
        ),
    ];
    let plot = |(heading, note, svg, curves): (_, _, Option<String>, &Vec<Curve>)| {
        Some(Plot { heading, note, svg: svg?, legend: legend(curves) })
    };
    Ok(all.into_iter().filter_map(plot).collect())
}

fn legend(curves: &[Curve]) -> String {
    if curves.len() < 2 {
        return String::new();
    }
    let mut text = "<p class=\"legend\">".to_owned();
    for (number, curve) in curves.iter().enumerate() {
        let RGBColor(red, green, blue) = COLOURS[number % COLOURS.len()];
        let name = escape(&curve.name);
        text.push_str(&format!("<span><b style=\"color:rgb({red},{green},{blue})\">&#9632;</b> {name}</span> "));
    }
    text + "</p>"
}

/// The curve of each run, called by the run and the figure as far as that tells it from others.
fn over_time(runs: &[Results], name: &str, figure: fn(&crate::send::tally::Point) -> f64) -> Vec<Curve> {
    let curve = |run: &Results| Curve {
        name: match (runs.len(), name) {
            (1, _) => name.to_owned(),
            (_, "") => run.label.clone(),
            _ => format!("{} {name}", run.label),
        },
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

fn draw_course(curves: &[Curve], unit: &str, by_powers: bool, size: (u32, u32)) -> io::Result<Option<String>> {
    let Some((x, y)) = extent(curves) else { return Ok(None) };
    let across = 0.0..x.max(0.1);
    let along = Axis { title: "seconds", label: &short };
    let upwards = Axis { title: unit, label: &short };
    if by_powers {
        let up = (lowest(curves) * 0.9..y.max(0.01) * 1.1).log_scale();
        return draw(curves, size, (across, along), (up, upwards)).map(Some);
    }
    draw(curves, size, (across, along), (0.0..y.max(1.0) * 1.05, upwards)).map(Some)
}

/// A number without needless digits, three behind the point at most.
fn short(value: &f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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
    let along = Axis { title: "percentile of messages", label: &percentile };
    let across = (1.0..x.max(100.0)).log_scale();
    let up = (lowest(curves) * 0.9..y.max(0.01) * 1.1).log_scale();
    draw(curves, WIDE, (across, along), (up, Axis { title: "ms", label: &short })).map(Some)
}

/// What an axis is about, and how its numbers are written.
struct Axis<'a> {
    title: &'a str,
    label: &'a dyn Fn(&f64) -> String,
}

fn draw<X, Y>(
    curves: &[Curve],
    size: (u32, u32),
    (across, along): (X, Axis<'_>),
    (up, upwards): (Y, Axis<'_>),
) -> io::Result<String>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(across, up)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 228, 232))
            .x_desc(along.title)
            .y_desc(upwards.title)
            .x_labels(size.0 as usize / 80)
            .y_labels(size.1 as usize / 40)
            .x_label_formatter(along.label)
            .y_label_formatter(upwards.label)
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
        let runs = [run.clone(), run];
        for (page, plots) in [(page("title", &runs), 5), (page_of_profiles("title", &runs), 1 + 2 * 4)] {
            let page = page.unwrap();
            assert_eq!(page.matches("<svg").count(), plots);
            assert!(page.contains("a &lt;b&gt; &amp; c") && !page.contains("a <b>"), "names are escaped");
            for outside in ["http-equiv", "src=", "href=", "@import"] {
                assert!(!page.contains(outside), "{outside}");
            }
        }
    }

    #[test]
    fn a_run_without_points_is_a_page_all_the_same() {
        for page in [page("empty", &[Results::default()]), page_of_profiles("empty", &[Results::default()])] {
            assert!(page.unwrap().ends_with("</html>\n"));
        }
    }
}
