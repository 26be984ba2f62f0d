"""Video files: what they hold (`probe`), what is shown of them (`plan`), reading it (`reader`).

Still images (`image`) go the same way, as plans of one frame, and folders of frames (`folder`).
"""

from data_prep.video.clips import check_videos, clip_of_video, unreadable_videos
from data_prep.video.container import Orientation, without_prefix
from data_prep.video.files import FileProblem, VideoError, file_problem
from data_prep.video.folder import clip_problem, frames_of_folder, is_folder
from data_prep.video.image import image_size, plan_image
from data_prep.video.plan import (
    FileState,
    FramePlan,
    fit_size,
    plan_frames,
    plan_times,
)
from data_prep.video.probe import Probe, probe
from data_prep.video.reader import EPSILON_S, Video, folder_frames, read_frames

__all__ = [
    "EPSILON_S",
    "FileProblem",
    "FileState",
    "FramePlan",
    "Orientation",
    "Probe",
    "Video",
    "VideoError",
    "check_videos",
    "clip_of_video",
    "clip_problem",
    "file_problem",
    "fit_size",
    "folder_frames",
    "frames_of_folder",
    "image_size",
    "is_folder",
    "plan_frames",
    "plan_image",
    "plan_times",
    "probe",
    "read_frames",
    "unreadable_videos",
    "without_prefix",
]
