//! The recall-speed plot, as SVG: recall on a scale that is logarithmic in what is missed, speed
//! on a logarithmic one.

use std::fmt::Write;

use super::curve::{frontier, Point};
use super::report::{Measured, Results};

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 64.0;

/// The least that is missed on the scale: a recall of 1 stands there.
const LEAST_MISSED: f64 = 0.0005;

/// Where the recall axis has marks.
const RECALLS: [f64; 9] = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999];

/// Colours that are told apart by those who see few of them, too (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555"];

/// The scales of a plot.
struct Scales {
    /// `-log10(1 - recall)` at the left and the right.
    missed: (f64, f64),
    /// `log10(qps)` at the bottom and the top.
    speed: (f64, f64),
}

impl Scales {
    fn of(points: &[Point]) -> Scales {
        let least = points.iter().map(|it| it.recall).fold(0.9, f64::min).max(0.0);
        let speeds = || points.iter().map(|it| it.qps.log10());
        let (low, high) = (speeds().fold(f64::INFINITY, f64::min), speeds().fold(0.0, f64::max));
        let low = if low.is_finite() { low.floor() } else { 0.0 };
        let mark = RECALLS.iter().rev().find(|mark| **mark <= least).copied().unwrap_or(least);
        Scales { missed: (position(mark), position(1.0)), speed: (low, high.ceil().max(low + 1.0)) }
    }

    fn x(&self, recall: f64) -> f64 {
        let (left, right) = self.missed;
        LEFT + (position(recall) - left) / (right - left) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, qps: f64) -> f64 {
        let (low, high) = self.speed;
        HEIGHT - BOTTOM - (qps.log10() - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    }
}

fn position(recall: f64) -> f64 {
    -(1.0 - recall).max(LEAST_MISSED).log10()
}

/// A curve of the plot.
struct Curve {
    label: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<Point>,
}

fn curves(engines: &[Measured]) -> Vec<Curve> {
    let mut curves = Vec::new();
    for (number, engine) in engines.iter().enumerate() {
        let mut clients: Vec<usize> =
            engine.points.iter().flat_map(|it| &it.loads).map(|it| it.clients).collect();
        clients.sort_unstable();
        clients.dedup();
        for clients in clients {
            let label = match (engine.through_sql, clients) {
                (false, _) => format!("{} (library)", engine.name),
                (true, 1) => format!("{}, 1 client", engine.name),
                (true, _) => format!("{}, {clients} clients", engine.name),
            };
            let points = frontier(&engine.curve(clients, false));
            let colour = COLOURS[number % COLOURS.len()];
            curves.push(Curve { label, colour, dashed: clients > 1, points });
        }
    }
    curves.retain(|curve| !curve.points.is_empty());
    curves
}

/// Draws results.
pub fn svg(results: &Results) -> String {
    let curves = curves(&results.engines);
    let all: Vec<Point> = curves.iter().flat_map(|curve| curve.points.iter().copied()).collect();
    let scales = Scales::of(&all);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!(
        "{}: {} rows, {} dimensions, {}",
        results.name, results.rows, results.dimensions, results.metric
    );
    text(
        &mut out,
        LEFT,
        30.0,
        "start",
        &format!("<tspan font-size=\"16\">{}</tspan>", escape(&title)),
    );
    axes(&mut out, &scales, results.limit);
    for curve in &curves {
        let at =
            |point: &Point| format!("{:.1},{:.1}", scales.x(point.recall), scales.y(point.qps));
        let line: Vec<String> = curve.points.iter().map(at).collect();
        let dash = if curve.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        put(
            &mut out,
            format_args!(
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{dash} points=\"{}\"/>\n",
                curve.colour,
                line.join(" ")
            ),
        );
        for point in &curve.points {
            put(
                &mut out,
                format_args!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"><title>{}: recall \
                     {:.4}, {:.0} a second</title></circle>\n",
                    scales.x(point.recall),
                    scales.y(point.qps),
                    curve.colour,
                    escape(&curve.label),
                    point.recall,
                    point.qps
                ),
            );
        }
    }
    legend(&mut out, &curves);
    out.push_str("</svg>\n");
    out
}

fn axes(out: &mut String, scales: &Scales, limit: usize) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let mut line = |x1: f64, y1: f64, x2: f64, y2: f64, colour: &str| {
        put(
            out,
            format_args!(
                "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
                 stroke=\"{colour}\"/>\n"
            ),
        );
    };
    let shown = |recall: &&f64| position(**recall) >= scales.missed.0 - 1e-9;
    for &recall in RECALLS.iter().filter(shown) {
        line(scales.x(recall), TOP, scales.x(recall), bottom, "#ddd");
    }
    let decades = scales.speed.0 as i32..=scales.speed.1 as i32;
    for decade in decades.clone() {
        let y = scales.y(10_f64.powi(decade));
        line(LEFT, y, right, y, "#bbb");
        for part in 2..10 {
            let qps = f64::from(part) * 10_f64.powi(decade);
            if qps.log10() < scales.speed.1 {
                line(LEFT, scales.y(qps), right, scales.y(qps), "#eee");
            }
        }
    }
    line(LEFT, bottom, right, bottom, "#333");
    line(LEFT, TOP, LEFT, bottom, "#333");
    for &recall in RECALLS.iter().filter(shown) {
        text(out, scales.x(recall), bottom + 18.0, "middle", &recall.to_string());
    }
    text(out, scales.x(1.0), bottom + 18.0, "middle", "1");
    for decade in decades {
        let qps = 10_f64.powi(decade);
        let label = if decade >= 3 { format!("{}k", qps / 1000.0) } else { qps.to_string() };
        text(out, LEFT - 8.0, scales.y(qps) + 4.0, "end", &label);
    }
    let middle = LEFT + (right - LEFT) / 2.0;
    text(out, middle, HEIGHT - 18.0, "middle", &format!("recall@{limit} (by what is missed)"));
    text(out, LEFT, TOP - 8.0, "middle", "queries a second");
}

fn legend(out: &mut String, curves: &[Curve]) {
    let x = WIDTH - RIGHT + 20.0;
    for (number, curve) in curves.iter().enumerate() {
        let y = TOP + 12.0 + 20.0 * number as f64;
        let dash = if curve.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        put(
            out,
            format_args!(
                "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{}\" \
                 stroke-width=\"2\"{dash}/>\n",
                x + 28.0,
                curve.colour
            ),
        );
        text(out, x + 36.0, y + 4.0, "start", &escape(&curve.label));
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    put(
        out,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>\n"),
    );
}

fn put(out: &mut String, what: std::fmt::Arguments) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(what);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::load::{Load, Round};
    use super::super::report::Setting;
    use super::*;

    fn results(points: &[(f64, f64)]) -> Results {
        let setting = |&(recall, qps): &(f64, f64)| {
            let round = Round { qps, p50_us: 1.0, p99_us: 1.0, cpu_us: None };
            Setting { knob: String::new(), recall, loads: vec![Load::new(1, vec![round])] }
        };
        let engine = Measured {
            name: "a<b & c".into(),
            through_sql: true,
            rows: 1,
            build: String::new(),
            load_seconds: None,
            build_seconds: None,
            page_bytes: None,
            arena_bytes: None,
            first_us: None,
            second_us: None,
            points: points.iter().map(setting).collect(),
        };
        Results {
            name: "set".into(),
            metric: "l2".into(),
            rows: 1,
            dimensions: 1,
            queries: 1,
            limit: 10,
            host: None,
            no_search: None,
            engines: vec![engine],
            ratios: Vec::new(),
        }
    }

    /// The numbers of an attribute, wherever it stands.
    fn numbers(svg: &str, attribute: &str) -> Vec<f64> {
        let start = format!("{attribute}=\"");
        let parts = svg.split(&start).skip(1).map(|it| it.split('"').next().unwrap());
        parts.filter_map(|it| it.parse().ok()).collect()
    }

    #[test]
    fn points_lie_inside_the_frame_in_order() {
        let svg = svg(&results(&[(0.8, 9000.0), (0.95, 2000.0), (1.0, 30.0)]));
        let (x, y) = (numbers(&svg, "cx"), numbers(&svg, "cy"));
        assert_eq!((x.len(), y.len()), (3, 3));
        assert!(x.is_sorted() && y.is_sorted(), "{x:?} {y:?}");
        assert!(x.iter().all(|x| (LEFT..=WIDTH - RIGHT).contains(x)), "{x:?}");
        assert!(y.iter().all(|y| (TOP..=HEIGHT - BOTTOM).contains(y)), "{y:?}");
    }

    #[test]
    fn names_are_escaped_and_elements_closed() {
        let svg = svg(&results(&[(0.9, 10.0)]));
        assert!(svg.contains("a&lt;b &amp; c, 1 client") && !svg.contains("a<b"));
        for element in ["svg", "text", "circle", "title", "tspan"] {
            let opened = svg.matches(&format!("<{element}")).count();
            assert_eq!(opened, svg.matches(&format!("</{element}>")).count(), "{element}");
        }
    }

    #[test]
    fn nothing_measured_is_a_plot_without_curves() {
        let svg = svg(&results(&[]));
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
