//! Pen marks and rubber stamps. Their text is not part of the document's text.

use zeno::{Cap, Command, Mask, Stroke, Vector};

use super::{
    fonts::{FAMILIES, face},
    vocabulary::Shared,
};
use crate::random::SeededRng;
use crate::rendering::{Canvas, GreyPage};

/// Draws `count` pen marks: scribbles, ticks, rings or lines.
pub(super) fn pen_marks(page: &mut GreyPage, rng: &mut SeededRng, count: usize) {
    for _ in 0..count {
        let (width, height) = (page.width as f32, page.height as f32);
        let path = match rng.below(4) {
            0 => scribble(rng, [width * 0.55, height - 60.0], [150.0, 34.0]),
            1 => tick(rng, height),
            2 => ring(rng, [width, height]),
            _ => line(rng, [width, height]),
        };
        let pen = rng.range(1.0, 2.6) as f32;
        let (coverage, place) = Mask::new(path.as_slice())
            .style(Stroke::new(pen).cap(Cap::Round))
            .render();
        let strength = rng.between(90, 220) as u32;
        darken(
            page,
            [place.left, place.top],
            place.width as usize,
            &coverage,
            strength,
        );
    }
}

/// A random point in a rectangle.
fn at(rng: &mut SeededRng, origin: [f32; 2], size: [f32; 2]) -> Vector {
    let (x, y) = (rng.unit() as f32, rng.unit() as f32);
    Vector::new(origin[0] + x * size[0], origin[1] + y * size[1])
}

/// Loops from left to right, like a signature.
fn scribble(rng: &mut SeededRng, origin: [f32; 2], size: [f32; 2]) -> Vec<Command> {
    let loops = rng.between(3, 7);
    let mut path = vec![Command::MoveTo(at(rng, origin, [8.0, size[1]]))];
    for index in 0..loops {
        let left = [origin[0] + size[0] * index as f32 / loops as f32, origin[1]];
        let room = [size[0] / loops as f32 * 1.6, size[1]];
        path.push(Command::CurveTo(
            at(rng, left, room),
            at(rng, left, room),
            at(rng, left, room),
        ));
    }
    path
}

/// A tick in the left margin.
fn tick(rng: &mut SeededRng, height: f32) -> Vec<Command> {
    let top = 40.0 + rng.unit() as f32 * (height - 100.0);
    vec![
        Command::MoveTo(Vector::new(4.0, top + 6.0)),
        Command::LineTo(Vector::new(8.0, top + 11.0)),
        Command::LineTo(Vector::new(17.0, top - 3.0)),
    ]
}

/// An ellipse around words, not quite closed.
fn ring(rng: &mut SeededRng, page: [f32; 2]) -> Vec<Command> {
    let (radius_x, radius_y) = (rng.range(28.0, 90.0) as f32, rng.range(11.0, 22.0) as f32);
    let center = at(rng, [100.0, 60.0], [page[0] - 200.0, page[1] - 120.0]);
    let turns = 40;
    let start = rng.range(0.0, 6.0) as f32;
    (0..turns)
        .map(|step| {
            let angle = start + 6.0 * step as f32 / turns as f32;
            let point = Vector::new(
                center.x + radius_x * angle.cos(),
                center.y + radius_y * angle.sin(),
            );
            if step == 0 {
                Command::MoveTo(point)
            } else {
                Command::LineTo(point)
            }
        })
        .collect()
}

/// A line under or beside words.
fn line(rng: &mut SeededRng, page: [f32; 2]) -> Vec<Command> {
    let from = at(rng, [30.0, 40.0], [page[0] * 0.6, page[1] - 80.0]);
    let length = rng.range(40.0, 240.0) as f32;
    let bend = |rng: &mut SeededRng| rng.range(-4.0, 4.0) as f32;
    let (one, two, end) = (bend(rng), bend(rng), bend(rng));
    vec![
        Command::MoveTo(from),
        Command::CurveTo(
            Vector::new(from.x + length * 0.3, from.y + one),
            Vector::new(from.x + length * 0.7, from.y + two),
            Vector::new(from.x + length, from.y + end),
        ),
    ]
}

/// A framed word, rotated, in thin ink, mostly on the right half.
pub(super) fn stamp(page: &mut GreyPage, rng: &mut SeededRng, shared: &Shared) {
    let word = rng.pick(&shared.stamps);
    let date = format!(
        "{:02}/{:02}/{}",
        rng.between(1, 12),
        rng.between(1, 28),
        rng.between(2019, 2027)
    );
    let face = face(rng.below(FAMILIES.len()), true, rng.between(18, 34) as u16, true);
    let text = if rng.chance(0.4) {
        format!("{word} {date}")
    } else {
        word.clone()
    };
    let (width, height) = (face.width(&text) + 24, 52);
    let mut canvas = Canvas::<1>::new(width, height);
    canvas.text(12, 8, &text, face, [0]);
    for inset in [1, 2] {
        let (right, bottom) = (width - 1 - inset, height - 1 - inset);
        canvas.fill((inset, inset), (right, inset), [0]);
        canvas.fill((inset, bottom), (right, bottom), [0]);
        canvas.fill((inset, inset), (inset, bottom), [0]);
        canvas.fill((right, inset), (right, bottom), [0]);
    }
    let slant = rng.range(6.0, 24.0) * if rng.chance(0.7) { -1.0 } else { 1.0 };
    let turned = rotate(&canvas.into_bytes(), [width as usize, height as usize], slant);
    let room = (page.width as f64, page.height as f64);
    let left = room.0 * rng.range(0.35, 0.95) - turned.side as f64 / 2.0;
    let top = room.1 * rng.range(0.05, 0.95) - turned.side as f64 / 2.0;
    let strength = rng.between(50, 115) as u32;
    darken(
        page,
        [left as i32, top as i32],
        turned.side,
        &turned.coverage,
        strength,
    );
}

/// A square of coverage.
struct Rotated {
    side: usize,
    coverage: Vec<u8>,
}

fn rotate(pixels: &[u8], [width, height]: [usize; 2], degrees: f64) -> Rotated {
    let side = ((width * width + height * height) as f64).sqrt().ceil() as usize + 2;
    let (sin, cos) = degrees.to_radians().sin_cos();
    let middle = side as f64 / 2.0;
    let mut coverage = vec![0; side * side];
    for (index, covered) in coverage.iter_mut().enumerate() {
        let (x, y) = ((index % side) as f64 - middle, (index / side) as f64 - middle);
        let column = x * cos + y * sin + width as f64 / 2.0;
        let row = y * cos - x * sin + height as f64 / 2.0;
        if column >= 0.0 && row >= 0.0 && (column as usize) < width && (row as usize) < height {
            *covered = 255 - pixels[row as usize * width + column as usize];
        }
    }
    Rotated { side, coverage }
}

/// Darkens the page by `strength` / 256 at full coverage; clips at its edges.
fn darken(page: &mut GreyPage, [left, top]: [i32; 2], width: usize, coverage: &[u8], strength: u32) {
    if width == 0 {
        return;
    }
    for (index, row) in coverage.chunks_exact(width).enumerate() {
        let y = top + index as i32;
        if y < 0 || y >= page.height as i32 {
            continue;
        }
        let start = y as usize * page.width as usize;
        for (column, covered) in row.iter().enumerate().filter(|(_, covered)| **covered > 0) {
            let x = left + column as i32;
            if x >= 0 && x < page.width as i32 {
                let pixel = &mut page.pixels[start + x as usize];
                let kept = 65_280 - u32::from(*covered) * strength;
                *pixel = (u32::from(*pixel) * kept / 65_280) as u8;
            }
        }
    }
}
