//! Pixels that `plotters` draws on, with letters that need no font of the machine, and their PNG.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind};

const LETTERS: RasterHeight = RasterHeight::Size16;
/// Letters have some room above them and below.
const LETTER_HEIGHT: i32 = 16;

/// Red, green and blue of each pixel, by row.
#[derive(Debug)]
pub(crate) struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    /// A white one.
    pub(crate) fn new((width, height): (u32, u32)) -> Self {
        let count = width as usize * height as usize;
        Self { width, height, pixels: vec![[255; 3]; count] }
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// Where the encoder refuses a picture of no pixels.
    pub(crate) fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_flattened())?;
        writer.finish()?;
        Ok(file)
    }

    /// Lays a colour over a pixel, `share` (0 to 1) of it; outside of the picture, nothing.
    fn blend(&mut self, (x, y): BackendCoord, (r, g, b): (u8, u8, u8), share: f64) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if x >= self.width || y >= self.height {
            return;
        }
        let place = y as usize * self.width as usize + x as usize;
        let Some(pixel) = self.pixels.get_mut(place) else { return };
        for (old, new) in pixel.iter_mut().zip([r, g, b]) {
            *old = mixed(*old, new, share);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "between two bytes")]
fn mixed(old: u8, new: u8, share: f64) -> u8 {
    let share = share.clamp(0.0, 1.0);
    (f64::from(old) * (1.0 - share) + f64::from(new) * share).round() as u8
}

/// What `plotters` takes; the canvas outlives it.
pub(crate) struct Brush<'a>(pub(crate) &'a mut Canvas);

type Failure = DrawingErrorKind<std::convert::Infallible>;

impl DrawingBackend for Brush<'_> {
    type ErrorType = std::convert::Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.0.width, self.0.height)
    }

    fn ensure_prepared(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn draw_pixel(&mut self, point: BackendCoord, colour: BackendColor) -> Result<(), Failure> {
        self.0.blend(point, colour.rgb, colour.alpha);
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        at: BackendCoord,
    ) -> Result<(), Failure> {
        let colour = style.color();
        let (width, height) = (text_width(text), LETTER_HEIGHT);
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => 0,
            HPos::Center => -width / 2,
            HPos::Right => -width,
        };
        let top = match anchor.v_pos {
            VPos::Top => 0,
            VPos::Center => -height / 2,
            VPos::Bottom => -height,
        };
        let turned = style.transform();
        for (letter, start) in text.chars().zip((left..).step_by(letter_width())) {
            let raster = get_raster(letter, FontWeight::Regular, LETTERS)
                .or_else(|| get_raster('?', FontWeight::Regular, LETTERS));
            for (row, y) in raster.iter().flat_map(|raster| raster.raster()).zip(top..) {
                for (ink, x) in row.iter().zip(start..) {
                    let (dx, dy) = turned.transform(x, y);
                    let share = colour.alpha * f64::from(*ink) / 255.0;
                    self.0.blend((at.0 + dx, at.1 + dy), colour.rgb, share);
                }
            }
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, _: &S) -> Result<(u32, u32), Failure> {
        Ok((text_width(text).unsigned_abs(), LETTER_HEIGHT.unsigned_abs()))
    }
}

fn letter_width() -> usize {
    get_raster_width(FontWeight::Regular, LETTERS).max(1)
}

fn text_width(text: &str) -> i32 {
    i32::try_from(text.chars().count() * letter_width()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_mix_and_edges_hold() {
        let mut canvas = Canvas::new((3, 2));
        canvas.blend((1, 1), (0, 0, 0), 0.5);
        for outside in [(-1, 0), (3, 0), (0, 2), (i32::MIN, i32::MAX)] {
            canvas.blend(outside, (0, 0, 0), 1.0);
        }
        assert_eq!(canvas.pixels.iter().filter(|pixel| **pixel == [128; 3]).count(), 1);
        assert_eq!(canvas.pixels.iter().filter(|pixel| **pixel == [255; 3]).count(), 5);
    }

    #[test]
    fn a_png_is_read_back_as_it_was() {
        let mut canvas = Canvas::new((7, 5));
        canvas.blend((6, 4), (1, 2, 3), 1.0);
        let file = canvas.png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; 7 * 5 * 3];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, canvas.pixels.as_flattened());
    }
}
