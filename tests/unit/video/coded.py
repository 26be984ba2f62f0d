"""Videos in which frame k shows k in binary: every frame that is read says which it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ROWS, COLUMNS = 3, 4  # twelve bits, the lowest at the top left; light is 1
TICKS = 1000  # time stamps in milliseconds


@dataclass(frozen=True)
class Kind:
    """How a video is written.

    Attributes:
        container: Suffix of the file.
        codec: FFmpeg's name of the encoder.
        options: Of the encoder.
        num_b: B-frames in a row.
        gop: Frames from key frame to key frame.
        rate: Frames per second.
        times_ms: When each frame is presented; at equal distances if None.
        offset_ms: Added to all of them.
        cut_ms: Cut off the start without encoding anew, by an edit list.
        rotation: Degrees that the picture is turned by when it is shown.
        pixels: Format of the pixels.
        size: (width, height)
        aspect: Width and height of one pixel, in proportion.
    """

    container: str = "mp4"
    codec: str = "libx264"
    options: tuple[tuple[str, str], ...] = ()
    num_b: int = 0
    gop: int = 15
    rate: int = 25
    times_ms: tuple[int, ...] | None = None
    offset_ms: int = 0
    cut_ms: int = 0
    rotation: int = 0
    pixels: str = "yuv420p"
    size: tuple[int, int] = (128, 96)
    aspect: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Written:
    """A file and what it shows: the number of each frame and when it is presented, seconds."""

    path: Path
    numbers: tuple[int, ...]
    times_s: tuple[float, ...]


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]"""
    bits = [(number >> bit) & 1 for bit in range(ROWS * COLUMNS)]
    grid = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 215 + 20
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(grid[rows][:, columns, None], 3, axis=2)


def number_of(image: np.ndarray) -> int:
    """The number that a picture shows."""
    grey = image.mean(axis=2)
    height, width = grey.shape[0] / ROWS, grey.shape[1] / COLUMNS
    value = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        part = grey[
            int((row + 0.3) * height) : int((row + 0.7) * height) + 1,
            int((column + 0.3) * width) : int((column + 0.7) * width) + 1,
        ]
        value |= int(part.mean() > 128) << bit
    return value


def write_coded(path: Path, kind: Kind, num_frames: int = 120, first: int = 0) -> Written:
    """Write frames `first` to `first + num_frames` - 1."""
    width, height = kind.size
    times = kind.times_ms or tuple(round(1000 * i / kind.rate) for i in range(num_frames))
    with av.open(str(path), "w") as out:
        stream = out.add_stream(kind.codec, rate=kind.rate, options=dict(kind.options))
        stream.width, stream.height, stream.pix_fmt = width, height, kind.pixels
        context = stream.codec_context
        context.gop_size, context.max_b_frames = kind.gop, kind.num_b
        is_even = kind.times_ms is None
        unit = Fraction(1, kind.rate) if is_even else Fraction(1, TICKS)
        context.time_base = unit
        if kind.aspect != (1, 1):
            context.sample_aspect_ratio = Fraction(*kind.aspect)
        if kind.rotation:
            stream.set_display_rotation(kind.rotation)
        shift = round(Fraction(kind.offset_ms - kind.cut_ms, 1000) / unit)

        def mux(packets: Sequence[av.Packet]) -> None:
            for packet in packets:
                move = round(Fraction(shift) * unit / packet.time_base)
                packet.pts, packet.dts = packet.pts + move, packet.dts + move
                out.mux(packet)

        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(first + i, width, height), format="rgb24")
            frame.pts = i if is_even else times[i]
            frame.time_base = unit
            mux(stream.encode(frame))
        mux(stream.encode(None))
    cut_s = float(round(Fraction(kind.cut_ms, 1000) / unit) * unit)
    kept = [(first + i, ms / 1000) for i, ms in enumerate(times) if ms / 1000 > cut_s - 1e-6]
    start_s = kept[0][1]
    return Written(path, tuple(n for n, _ in kept), tuple(s - start_s for _, s in kept))


def write_packed(path: Path, num_frames: int = 90, rate: int = 25) -> Written:
    """MPEG-4 in AVI as DivX and XviD pack it, and as UCF-101 holds it.

    A B-frame lies in the chunk of the frame that it needs; a frame of nothing stands in its place::

        encoder   I0   P2   B1      P4   B3
        chunks    I0   P2+B1   -    P4+B3   -
    """
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 128, 96, "yuv420p"
    encoder.time_base, encoder.max_b_frames, encoder.gop_size = Fraction(1, rate), 1, 30
    packets = []
    for i in range(num_frames):
        frame = av.VideoFrame.from_ndarray(picture(i, 128, 96), format="rgb24")
        frame.pts, frame.time_base = i, encoder.time_base
        packets += encoder.encode(frame)
    coded = [bytes(packet) for packet in [*packets, *encoder.encode(None)]]
    chunks: list[bytes] = []
    for i, data in enumerate(coded):
        if _vop_type(data) == "B":
            chunks[-1] += data
            chunks.append(_empty_vop(i % rate, rate))
        else:
            chunks.append(_as_divx(data))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.pts, packet.dts = stream, i, i
            packet.time_base = Fraction(1, rate)
            out.mux(packet)
    return Written(path, tuple(range(num_frames)), tuple(i / rate for i in range(num_frames)))


_VOP = b"\x00\x00\x01\xb6"  # start of a frame (ISO/IEC 14496-2, 6.2.5)
_USER_DATA = b"\x00\x00\x01\xb2"


def _vop_type(data: bytes) -> str:
    return "IPBS"[data[data.index(_VOP) + 4] >> 6]


def _as_divx(data: bytes) -> bytes:
    """The same, with DivX's mark of a packed stream where a header stands before the frame."""
    start = data.index(_VOP)
    return data if start == 0 else data[:start] + _USER_DATA + b"DivX503b1393p" + data[start:]


def _empty_vop(increment: int, rate: int) -> bytes:
    """A frame that is not coded: type P, no second, marker, time, marker, not coded; filled up."""
    width = (rate - 1).bit_length()
    bits = f"0101{increment:0{width}b}100"
    bits += "1" * (-len(bits) % 8)
    return _VOP + int(bits, 2).to_bytes(len(bits) // 8, "big")


def write_with_gaps(path: Path, num_frames: int = 60, rate: int = 25) -> Written:
    """MPEG-4 in AVI with a frame of nothing after every fourth, as recorders write that lag."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 128, 96, "yuv420p"
    encoder.time_base, encoder.gop_size = Fraction(1, rate), 12
    numbers, times = [], []
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i in range(num_frames):
            if i % 5 == 4:
                chunks = [_empty_vop(i % rate, rate)]
            else:
                frame = av.VideoFrame.from_ndarray(picture(i, 128, 96), format="rgb24")
                frame.pts, frame.time_base = i, encoder.time_base
                chunks = [bytes(packet) for packet in encoder.encode(frame)]
                numbers.append(i)
                times.append(i / rate)
            for chunk in chunks:
                packet = av.Packet(chunk)
                packet.stream, packet.pts, packet.dts = stream, i, i
                packet.time_base = Fraction(1, rate)
                out.mux(packet)
    return Written(path, tuple(numbers), tuple(times))


def remux(source: Path, target: Path, movflags: str = "") -> None:
    """The same packets in another container."""
    options = {"movflags": movflags} if movflags else {}
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


def write_hidden(path: Path, num_frames: int = 60, rate: int = 25) -> Written:
    """VP8 with a frame that is not shown 10 ms before every key frame, as alternate references lie.

    It is a copy of the key frame, which may be decoded twice, without the mark of a shown frame.
    """
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 128, 96, "yuv420p"
    encoder.time_base, encoder.gop_size = Fraction(1, rate), 15
    encoder.options = {"deadline": "realtime", "cpu-used": "8"}
    packets = []
    for i in range(num_frames):
        frame = av.VideoFrame.from_ndarray(picture(i, 128, 96), format="rgb24")
        frame.pts, frame.time_base = i, encoder.time_base
        packets += encoder.encode(frame)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for i, coded in enumerate([*packets, *encoder.encode(None)]):
            data, stamp_ms = bytes(coded), 1000 * i // rate
            is_key = not data[0] & 1  # RFC 6386, 9.1
            parts = [(stamp_ms, data)]
            if i and is_key:
                parts.insert(0, (stamp_ms - 10, bytes([data[0] & ~16]) + data[1:]))
            for pts, part in parts:
                packet = av.Packet(part)
                packet.stream, packet.pts, packet.dts = stream, pts, pts
                packet.time_base, packet.is_keyframe = Fraction(1, 1000), is_key
                out.mux(packet)
    return Written(path, tuple(range(num_frames)), tuple(i / rate for i in range(num_frames)))


def write_with_sound(path: Path, kind: Kind, num_frames: int, video_from_s: float) -> Written:
    """Pictures that begin later than the sound, which starts at 0."""
    source = path.with_name(f"silent-{path.stem}.mkv")
    written = write_coded(source, replace(kind, container="mkv"), num_frames)
    with av.open(str(source)) as old, av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        video = out.add_stream_from_template(old.streams.video[0])
        for i in range(round((num_frames / kind.rate + video_from_s) * 50)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, 960 * i
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                assert packet.pts is not None
                move = round(video_from_s / packet.time_base)
                dts = None if packet.dts is None else packet.dts + move
                packet.pts, packet.dts, packet.stream = packet.pts + move, dts, video
                out.mux(packet)
    return replace(written, path=path)


def remux_from(source: Path, target: Path, first: int) -> None:
    """The packets from `first` on."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.size]
        for packet in packets[first:]:
            packet.stream = stream
            new.mux(packet)
