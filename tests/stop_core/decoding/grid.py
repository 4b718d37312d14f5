"""A grid of videos: codecs x containers x structures x display matrices x colours x sizes.

To extend it, add a line to one of the tables. `rows` chooses combinations in which every two
entries meet, instead of the full product. FFmpeg makes the video of a row in one or two steps: it
encodes a pattern, and copies the stream where a cut or a display matrix asks for it.
"""

import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import sha256
from itertools import combinations, product
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

FRAMES = 40
_RATE = 25
_SQUARE = 16  # pixels
_LOST = "truncated|damaged|holds no frames|not a video"


@dataclass(frozen=True)
class Codec:
    """Options of an encoder, and its possible combinations."""

    options: str
    containers: str
    colours: str = "bt601 bt709 full full709"
    sizes: str = "96x64 98x66 64x96 192x108"
    has_times: bool = True
    """False where a packet holds two pictures, and has one time for them."""


@dataclass(frozen=True)
class Container:
    """Options of a muxer, the suffix first."""

    options: str
    sound: str = "aac"
    has_matrix: bool = True
    has_times: bool = True
    """Whether it stores when each frame is shown; others leave it to the demuxer to guess."""


@dataclass(frozen=True)
class Structure:
    """Options of FFmpeg; "{sound}" is replaced by the container's audio encoder."""

    inputs: str = ""
    encode: str = ""
    copy_from: str = ""
    copy_with: str = ""
    copy: str = ""
    keep: float = 1.0
    """Share of the bytes that are kept."""
    refusal: str = ""
    """Pattern of the reason for which it can be refused: some of the video is missing."""
    containers: str = ""
    """The only containers that it is made in; all of them if empty."""


_ISO = "mp4 mov faststart unedited fragmented 3gp"
_ANY = f"{_ISO} mkv mkv-live avi ts m2ts flv"
_X264 = "libx264 -g 10 -x264-params scenecut=0:b-adapt=0:bframes="
_X265 = "libx265 -g 10 -x265-params log-level=none:scenecut=0:pools=none:frame-threads=1"
_MPEG = "-g 10 -sc_threshold 1000000000 -q:v 2"  # without the threshold, key frames only
_VP9 = "libvpx-vp9 -g 15 -b:v 2M -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16"
_VP8 = "libvpx -g 15 -b:v 2M -deadline"
_DEEP = "10bit 422-10bit 444-10bit 2020"
_ODD = "96x64 97x65 192x108"

CODECS = {
    "h264": Codec(f"{_X264}0", _ANY, f"bt601 bt709 full full709 gray 422 444 rgb {_DEEP}"),
    "h264-b": Codec(f"{_X264}3", _ANY, "bt601 bt709 full full709 444 10bit"),
    "h264-open": Codec(f"{_X264}3:open-gop=1", _ANY),
    "h264-long": Codec("libx264 -bf 2 -refs 4 -x264-params keyint=infinite", _ANY),
    "h264-intra": Codec(f"{_X264}0:keyint=1", _ANY),
    "h264-refresh": Codec(f"{_X264}0:intra-refresh=1", _ANY),
    "h264-fields": Codec(f"{_X264}2:tff=1 -flags +ildct+ilme", _ANY, sizes="96x64 192x108"),
    "h264-slices": Codec(f"{_X264}0:slices=4 -tune zerolatency", _ANY),
    "h264-cropped": Codec(f"{_X264}2 -bsf:v h264_metadata=crop_left=4:crop_bottom=6", _ANY),
    "h264-avc3": Codec(f"{_X264}2 -tag:v avc3 -bsf:v dump_extra", "mp4 fragmented"),
    "h265": Codec(
        _X265, _ANY.replace("3gp ", ""), "bt601 full 422 444 gray 10bit 2020", "96x64 192x108"
    ),
    "h265-closed": Codec(f"{_X265}:open-gop=0 -tag:v hvc1", "mp4 mov", "bt709 full709"),
    "mpeg4": Codec(f"mpeg4 {_MPEG}", f"{_ISO} mkv avi mpg", sizes="96x64 97x65"),
    "mpeg4-b": Codec(f"mpeg4 {_MPEG} -bf 2", f"{_ISO} mkv avi ts"),
    "mpeg4-packed": Codec("libxvid -g 10 -bf 2 -q:v 2", "avi mkv mp4", has_times=False),
    "mpeg4-qpel": Codec(f"mpeg4 {_MPEG} -bf 1 -flags +qpel", "avi mkv mp4"),
    "mpeg4-fields": Codec(f"mpeg4 {_MPEG} -flags +ildct+ilme", "avi mkv mp4", "bt601 full709"),
    "msmpeg4": Codec("msmpeg4 -g 10 -q:v 2 -vtag DIV3", "avi mkv asf"),
    "wmv2": Codec("wmv2 -g 10 -q:v 2", "asf avi mkv"),
    "h263": Codec("h263 -g 10 -q:v 2", "3gp avi mkv mov", sizes="128x96"),
    "mpeg1": Codec(f"mpeg1video {_MPEG} -bf 2", "mpg mkv avi ts mp4"),
    "mpeg2": Codec(f"mpeg2video {_MPEG}", "mpg mkv avi ts mp4 mov", "bt601 full709 422"),
    "mpeg2-b": Codec(f"mpeg2video {_MPEG} -bf 2", "mpg mkv avi ts mp4"),
    "mpeg2-fields": Codec(f"mpeg2video {_MPEG} -bf 2 -flags +ildct+ilme", "mpg mkv ts mov"),
    "vp8": Codec(f"{_VP8} good -auto-alt-ref 1 -lag-in-frames 16", "webm mkv avi", sizes=_ODD),
    "vp8-live": Codec(f"{_VP8} realtime -lag-in-frames 0", "webm mkv avi"),
    "vp9": Codec(_VP9, "webm mkv mp4 fragmented avi", "bt601 bt709 full 422 444 10bit rgb", _ODD),
    "vp9-split": Codec(f"{_VP9} -bsf:v vp9_superframe_split -fflags -autobsf", "webm mkv mp4"),
    "av1": Codec(
        "libaom-av1 -g 15 -cpu-used 8 -lag-in-frames 16", "mp4 webm mkv", "full 444 10bit"
    ),
    "av1-svt": Codec("libsvtav1 -g 15 -preset 12", "mp4 webm mkv fragmented", "bt601 bt709 10bit"),
    "theora": Codec("libtheora -g 10 -q:v 8", "ogg mkv", "bt601 422 444"),
    "mjpeg": Codec("mjpeg -q:v 2", "avi mov mp4 mkv", "full full-422", _ODD),
    "prores": Codec("prores_ks", "mov mkv", "422-10bit 444-10bit"),
    "ffv1": Codec(
        "ffv1 -g 1 -slices 4 -level 3", "mkv avi mov", f"bt601 gray 422 {_DEEP} bgr", _ODD
    ),
}

CONTAINERS = {
    "mp4": Container(".mp4"),
    "mov": Container(".mov"),
    "faststart": Container(".mp4 -movflags +faststart+negative_cts_offsets"),
    "unedited": Container(".mp4 -use_editlist 0"),
    "fragmented": Container(".mp4 -movflags +frag_keyframe+empty_moov+default_base_moof"),
    "3gp": Container(".3gp"),
    "mkv": Container(".mkv"),
    "mkv-live": Container(".mkv -live 1"),
    "webm": Container(".webm", "libopus -ar 48000"),
    "avi": Container(".avi", "mp2", has_matrix=False, has_times=False),
    "ts": Container(".ts", has_matrix=False),
    "m2ts": Container(".m2ts -mpegts_m2ts_mode 1", has_matrix=False),
    "mpg": Container(".mpg", "mp2", has_matrix=False),
    "flv": Container(".flv", has_matrix=False),
    "asf": Container(".wmv", "wmav2", has_matrix=False),
    "ogg": Container(".ogv", "libvorbis", has_matrix=False, has_times=False),
}

_SOUND = "-f lavfi -i sine=d=1.6 -c:a {sound} -ac 1"
STRUCTURES = {
    "whole": Structure(),
    # Not in a transport stream: FFmpeg cannot identify it from so few packets.
    "single": Structure(encode="-frames:v 1", containers=f"{_ISO} mkv mkv-live webm avi flv"),
    "three": Structure(encode="-frames:v 3"),
    "ntsc": Structure(encode="-vf setpts=N/(30000/1001)/TB -r 30000/1001"),
    "uneven": Structure(encode=r"-vf select=gt(mod(n\,5)\,1)+lt(n\,9) -fps_mode passthrough"),
    "gap": Structure(encode=r"-vf setpts=PTS+gt(N\,20)*2/TB -fps_mode passthrough"),
    "sound": Structure(f"{_SOUND} -map 0:v -map 1:a"),
    "sound-first": Structure(f"{_SOUND} -map 1:a -map 0:v"),
    "sound-late": Structure(f"-itsoffset 0.7 {_SOUND} -map 0:v -map 1:a"),
    "pictures-late": Structure(f"-itsoffset -0.7 {_SOUND} -map 0:v -map 1:a"),
    "offset": Structure(copy="-output_ts_offset 7.3"),
    "begin-cut": Structure(copy_from="-ss 0.53"),
    "begin-below-zero": Structure(
        copy_from="-ss 0.53", copy="-avoid_negative_ts disabled", containers=f"{_ISO} mkv webm"
    ),
    "end-cut": Structure(copy="-t 0.9"),
    "both-cut": Structure(copy_from="-ss 0.67", copy="-t 0.6"),
    "twice": Structure(copy_from="-stream_loop 1", refusal=_LOST),  # nothing mends the seam
    "wrapped": Structure(copy="-output_ts_offset 95443", containers="ts m2ts"),
    "two": Structure(
        copy_with="-f lavfi -i testsrc=64x48:d=0.5",
        copy="-map 1 -c:v:1 mpeg4",
        containers="mp4 mov mkv",
    ),
    "cover": Structure(
        copy_with="-f lavfi -i color=red:320x240:d=0.04",
        copy="-map 1 -c:v:1 mjpeg -pix_fmt:v:1 yuvj420p -disposition:v:1 attached_pic",
        containers="mp4 mov faststart",
    ),
    "timecode": Structure(encode="-timecode 01:00:00:00", containers="mp4 mov"),
    "lost": Structure(copy=r"-bsf:v noise=drop=eq(n\,17)", refusal=_LOST),
    "truncated": Structure(keep=0.8, refusal=_LOST),
    "last-byte": Structure(keep=0.9999, refusal=_LOST),
}

MATRICES = {
    "up": "",
    "90": "-display_rotation 90",
    "180": "-display_rotation 180",
    "270": "-display_rotation 270",
    "hflip": "-display_hflip",
    "vflip": "-display_vflip",
    "90-hflip": "-display_rotation 90 -display_hflip",
    "270-hflip": "-display_rotation 270 -display_hflip",
}

COLOURS = {  # pixel format, matrix, range, and whether they are written into the stream
    "bt601": "yuv420p bt601 tv",
    "bt709": "yuv420p bt709 tv tagged",
    "full": "yuvj420p bt601 pc tagged",
    "full709": "yuv420p bt709 pc tagged",
    "gray": "gray bt601 pc tagged",
    "422": "yuv422p bt601 tv",
    "444": "yuv444p bt709 tv tagged",
    "full-422": "yuvj422p bt601 pc tagged",
    "10bit": "yuv420p10le bt709 tv tagged",
    "422-10bit": "yuv422p10le bt709 tv tagged",
    "444-10bit": "yuv444p10le bt709 tv tagged",
    "2020": "yuv420p10le bt2020 tv tagged",
    "rgb": "gbrp - pc",
    "bgr": "bgr0 - pc",
}

SIZES = ["96x64", "98x66", "64x96", "192x108", "97x65", "128x96"]


@dataclass(frozen=True)
class Row:
    """One entry of each table, by name."""

    codec: str
    container: str
    structure: str
    matrix: str
    colour: str
    size: str

    def __str__(self) -> str:
        return " ".join(astuple(self))


_OF_CONTAINERS = {"ntsc", "offset", "wrapped", "two", "cover", "timecode", "pictures-late"}
_OF_CONTAINERS |= {"sound", "sound-first", "sound-late"}
_OF_EACH_KIND = {"h264", "h264-b", "h265", "mpeg4-b", "mpeg4-packed", "mpeg2-b", "vp8", "vp9"}
_OF_EACH_KIND |= {"av1", "theora", "mjpeg"}
_AXES = {
    "codec": list(CODECS),
    "container": list(CONTAINERS),
    "structure": list(STRUCTURES),
    "matrix": list(MATRICES),
    "colour": list(COLOURS),
    "size": SIZES,
}
_Part = dict[str, str]


def _fits(part: _Part) -> bool:
    """Returns whether these entries can be combined."""
    container, structure = part.get("container"), part.get("structure")
    if container and part.get("matrix", "up") != "up" and not CONTAINERS[container].has_matrix:
        return False
    if container and structure:
        only = STRUCTURES[structure].containers.split()
        if only and container not in only:
            return False
    if "codec" not in part:
        return True
    allowed = _allowed(part["codec"])
    return all(part[axis] in allowed[axis] for axis in allowed if axis in part)


def _matters(pair: _Part) -> bool:
    """Returns whether one of the two can change how the other is decoded.

    A structure moves packets, not pixels: it need not meet each colour and size. Sound and times
    of the container meet one codec of each way to store pictures.
    """
    structure = pair.get("structure")
    if structure in _OF_CONTAINERS and "codec" in pair:
        return pair["codec"] in _OF_EACH_KIND
    return not structure or not pair.keys() & {"colour", "size"}


def _allowed(codec: str) -> dict[str, list[str]]:
    made = CODECS[codec]
    allowed = {"container": made.containers, "colour": made.colours, "size": made.sizes}
    return {axis: names.split() for axis, names in allowed.items()}


def _pairs(row: _Part) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(two) for two in combinations(row.items(), 2)}


def rows(seed: int = 0, begin: Sequence[Row] = (), **only: list[str]) -> list[Row]:
    """Returns rows in which every two entries that can be combined meet at least once.

    Where nothing new can meet, the first entry of the codec is taken: rows that differ in what is
    copied only share one encoding.

    Args:
        seed: another one pairs them in other rows.
        begin: rows to begin with; their pairs are not repeated.
        only: the entries of a table, where not all are to be used.
    """
    rng, axes = random.Random(seed), _AXES | only
    missing = {
        frozenset(pair)
        for one, other in combinations(axes, 2)
        for pair in product([(one, e) for e in axes[one]], [(other, e) for e in axes[other]])
        if _fits(dict(pair)) and _matters(dict(pair))
    }
    for row in begin:
        missing -= _pairs(asdict(row))

    def completed(part: _Part) -> _Part | None:
        """Returns the part with an entry of each table, preferring pairs that are missing."""
        axis = next((axis for axis in axes if axis not in part), None)
        if axis is None:
            return part
        entries = [entry for entry in axes[axis] if _fits(part | {axis: entry})]
        rng.shuffle(entries)
        new = {e: sum({(axis, e), other} in missing for other in part.items()) for e in entries}
        usual = next(iter(_allowed(part["codec"]).get(axis, [])), "") if "codec" in part else ""
        entries.sort(key=lambda e: (-new[e], e != usual))
        found = (completed(part | {axis: entry}) for entry in entries)
        return next((row for row in found if row), None)

    chosen = list(begin)
    for pair in sorted(missing, key=sorted):
        if pair in missing and (row := completed(dict(pair))):
            chosen.append(Row(**row))
            missing -= _pairs(row)
    return chosen


def commands(row: Row, folder: Path) -> tuple[Path, list[list[str]]]:
    """Returns the file of a row and the arguments of FFmpeg that make it."""
    container, structure = CONTAINERS[row.container], STRUCTURES[row.structure]
    suffix, *muxer = container.options.split()

    def split(options: str) -> list[str]:
        return options.format(sound=container.sound).split()

    pixels, matrix, span, *tagged = COLOURS[row.colour].split()
    filters = "null" if matrix == "-" else f"scale=out_color_matrix={matrix}:out_range={span}"
    tags = []
    if tagged:
        space = {"bt601": "smpte170m", "bt2020": "bt2020nc"}.get(matrix, matrix)
        tags = ["-colorspace", space, "-color_range", span]
    encode = split(structure.encode)
    if "-vf" in encode:
        filters = f"{encode.pop(encode.index('-vf') + 1)},{filters}"
        encode.remove("-vf")
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", row.size, "-r", str(_RATE), "-i"]
    first = [*raw, str(folder / row.size), *split(structure.inputs)]
    first += ["-filter:v:0", f"{filters},format={pixels}", "-c:v:0"]
    first += [*CODECS[row.codec].options.split(), *tags, *encode, "-threads", "1"]
    first += ["-strict", "-2", *muxer]
    made = folder / f"{sha256(repr(first).encode()).hexdigest()[:16]}{suffix}"
    turn = MATRICES[row.matrix].split()
    if not (turn or structure.copy_from or structure.copy):
        return made, [[*first, str(made)]]
    target = folder / f"copy{suffix}"
    copy = [*split(structure.copy_from), *turn, "-i", str(made), *split(structure.copy_with)]
    copy += ["-map", "0:v", "-map", "0:a?", "-c", "copy", *split(structure.copy)]
    copy += ["-strict", "-2", *muxer, str(target)]
    return target, [[*first, str(made)], copy]


def make(row: Row, folder: Path) -> Path:
    """Makes the file of a row in a folder; ValueError if FFmpeg cannot."""
    pattern = folder / row.size
    if not pattern.exists():
        pattern.write_bytes(_pattern(*map(int, row.size.split("x"))).tobytes())
    target, (encode, *copy) = commands(row, folder)
    for arguments in [*([] if Path(encode[-1]).exists() else [encode]), *copy]:
        done = _ffmpeg("-v", "error", *arguments)
        if done.returncode:
            raise ValueError(f"{row}: {done.stderr.decode()[-400:]}")
    if (keep := STRUCTURES[row.structure].keep) < 1:
        data = target.read_bytes()
        target = folder / f"cut{target.suffix}"
        target.write_bytes(data[: int(len(data) * keep)])
    return target


def decoded(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Returns all frames of a file as FFmpeg shows them, and when, in seconds from the first."""
    show = ["-vf", "showinfo=checksum=0", "-fps_mode", "passthrough"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = _ffmpeg("-threads", "1", "-i", str(path), *show, *raw)
    told = done.stderr.decode(errors="replace")
    found = re.findall(r" n: *\d+ pts: *\S+ +pts_time:(\S+) .* s:(\d+)x(\d+) ", told)
    if not found:
        return np.empty((0, 1, 1, 3), np.uint8), np.empty(0)
    times = np.array([np.nan if time == "NOPTS" else float(time) for time, _, _ in found])
    sizes = {(int(height), int(width)) for _, width, height in found}
    assert len(sizes) == 1, "the frames are not of one size"
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, *sizes.pop(), 3), times - times[0]


def _ffmpeg(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def _pattern(width: int, height: int) -> NDArray[np.uint8]:
    """Returns FRAMES pictures of large squares, of which some change from each to the next."""
    rng = np.random.default_rng(0)
    rows, columns = -(-height // _SQUARE), -(-width // _SQUARE)
    squares = rng.integers(0, 256, (rows, columns, 3), np.uint8)
    pictures = []
    for _ in range(FRAMES):
        squares[rng.integers(rows)] = rng.integers(0, 256, (columns, 3))
        squares[:, rng.integers(columns)] = rng.integers(0, 256, (rows, 3))
        pictures.append(squares.repeat(_SQUARE, 0).repeat(_SQUARE, 1)[:height, :width])
    return np.stack(pictures)
