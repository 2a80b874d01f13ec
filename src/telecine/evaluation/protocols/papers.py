"""The protocols of published results: VidTok, WF-VAE, Cosmos (TokenBench, DAVIS), LARP (UCF-101, Kinetics-600)."""

from dataclasses import replace

from telecine.evaluation.protocols.published import PublishedProtocol

_DECODER = "frames are decoded by decord; here by PyAV, whose conversion to RGB differs slightly"
_BFLOAT16 = "the model computes in bfloat16; here in float32"

VIDTOK = PublishedProtocol(
    name="vidtok",
    data="MCL-JCV, 30 videos",
    num_videos=30,
    clips="all",
    num_frames=17,
    sample_fps=30.0,
    short_side=256,
    interpolation="bilinear",
    enlarge=True,
    crop=256,
    posterior="sample",
    values="float",
    metrics=("psnr_frames_epsilon", "ssim_valid", "lpips_vgg", "fvd"),
    sources=(
        "arXiv 2412.13061, table 1: 17 x 256 x 256, MCL-JCV, 30 frames a second",
        "github.com/microsoft/VidTok, README.md, section Performance: 30 videos",
        "github.com/microsoft/VidTok, vidtok/data/vidtok.py, VidTokValDataset: clips, frame rate, resize, crop",
        "github.com/microsoft/VidTok, scripts/inference_evaluate.py: posterior, range, means over frames and clips",
        "github.com/microsoft/VidTok, vidtok/modules/util.py, compute_psnr, compute_ssim; modules/lpips.py: VGG16",
    ),
    not_stated=(
        "FVD: network, clips and their number; here of the I3D in `features`, over all clips",
    ),
    deviations=(_DECODER,),
)

_WF_VAE_VIDEOS = (
    "which videos, and how many (issue 21 of the repository asks); here those in `data`"
)
_WF_VAE_ANTIALIASING = (
    "antialiasing: the default of torchvision, whose version is not pinned; "
    "here on, the default since 0.17"
)
WF_VAE_33 = PublishedProtocol(
    name="wf_vae_33",
    data="WebVid-10M or Panda-70M",
    clips="first",
    num_frames=33,
    short_side=256,
    interpolation="bilinear",
    enlarge=True,
    crop=256,
    posterior="sample",
    values="truncated",
    metrics=("psnr_frames", "ssim_valid", "lpips_alex", "fvd_single"),
    sources=(
        "arXiv 2411.17459, table 1: the data; figure 1 and table 5: 33 x 256 x 256",
        "github.com/PKU-YuanGroup/WF-VAE, examples/gen_video.sh, eval.sh: frames, size, batches of one clip",
        "github.com/PKU-YuanGroup/WF-VAE, causalvideovae/dataset/video_dataset.py: clips, resize, crop",
        "github.com/PKU-YuanGroup/WF-VAE, scripts/recon_video.py: posterior; utils/video_utils.py: 8 bits",
        "github.com/PKU-YuanGroup/WF-VAE, causalvideovae/eval/cal_psnr.py, cal_ssim.py, cal_lpips.py, cal_fvd.py",
    ),
    not_stated=(_WF_VAE_VIDEOS, _WF_VAE_ANTIALIASING),
    deviations=(
        _DECODER,
        _BFLOAT16,
        "inputs and reconstructions are written as MPEG-4 and read again before they are measured; here not",
        "LPIPS resizes its maps to the frame before their mean; here not, which changes the fifth digit",
        "a video that is too short is replaced by the first one; here it is left out",
        "identical clips have a PSNR of 100, others no limit; here each frame has at most 100",
    ),
)
WF_VAE_25 = replace(
    WF_VAE_33,
    name="wf_vae_25",
    num_frames=25,
    not_stated=(
        _WF_VAE_VIDEOS,
        _WF_VAE_ANTIALIASING,
        "figures of 25 frames: that is the length of training clips (examples/train_ddp.sh); all else as for 33",
    ),
)

_COSMOS_CHUNKS = "github.com/NVIDIA/Cosmos-Tokenizer, cosmos_tokenizer/video_lib.py, video_cli.py: chunks of 17 frames"
_COSMOS_METRICS = (
    "github.com/NVlabs/TokenBench, token_bench/metrics_cli.py, token_bench/fvd.py: "
    "metrics over 8-bit videos"
)
_COSMOS_NOT_STATED = (
    "what the text of arXiv 2501.03575 adds; these items are those of the published code",
    "`--temporal_window` of the published figures; here its default, 17",
    "the decoded latent: Cosmos has no posterior; here its mode",
)
TOKENBENCH = PublishedProtocol(
    name="tokenbench",
    data="TokenBench: videos of BDD100K, EgoExo-4D, BridgeData V2 and Panda-70M, as list.txt names them",
    clips="whole",
    max_length=(300, 10.0),
    short_side=1080,
    interpolation="lanczos",
    enlarge=False,
    posterior="mode",
    chunk=17,
    values="rounded",
    metrics=("psnr_bytes", "psnr_modulo", "ssim_uniform", "lpips_vgg", "fvd"),
    sources=(
        "github.com/NVlabs/TokenBench, README.md: the sets of videos; PSNR, SSIM and rFVD",
        "github.com/NVlabs/TokenBench, token_bench/video/list.txt, preprocessing_script.py: videos, length, size",
        _COSMOS_CHUNKS,
        _COSMOS_METRICS,
    ),
    not_stated=(
        "whether the figures are of all videos of list.txt; here of those in `data`",
        *_COSMOS_NOT_STATED,
    ),
    deviations=(
        _BFLOAT16,
        "frames are decoded by ffmpeg through mediapy, or read as images; here decoded by PyAV",
        "inputs and reconstructions are written as MP4 and read again before they are measured; here not",
        "chunks are padded on both sides, frames with 0; here at the end, by repeating frames, rows and columns",
        "psnr_modulo is what the published code computes, psnr_bytes what it documents",
        "at most 300 frames of a video count in FVD; here all that are measured",
    ),
)
DAVIS = replace(
    TOKENBENCH,
    name="davis",
    data="DAVIS (Perazzi et al. 2016)",
    max_length=None,
    short_side=None,
    sources=(
        "github.com/NVIDIA/NeMo, nemo/collections/physicalai/Cosmos/cosmos1/models/tokenizer/README.md: DAVIS",
        _COSMOS_CHUNKS,
        _COSMOS_METRICS,
    ),
    not_stated=(
        "which sequences, at which size; here those in `data`, whole, at their size, as videos without loss",
        *_COSMOS_NOT_STATED,
    ),
)

_LARP_SOURCES = (
    "github.com/hywang66/LARP, eval/rfvd_evaluator.py, eval/eval_larp_tokenizer.py: 16 x 128 x 128, one "
    "clip of each video, `--det` without chance in the latent, metrics; LPIPS of VGG16",
    "github.com/hywang66/LARP, datasets/video_dataset.py: consecutive frames from a random one on, the last "
    "one repeated in short videos; resize, crop; 38148 values in four columns, those of 9537 videos",
    "github.com/zhxie0117/VideoRAE, which builds on LARP: utils/fvd/fvd.py, FVDCalculator: the I3D of StyleGAN-V, "
    "i3d_torchscript.pt, in [-1, 1]; data/metadata/ucf101_train.csv",
    "github.com/HKU-MMLab/EVATok (arXiv 2603.12267), README.md: rFVD and LPIPS of 16 x 128 x 128",
)
_LARP_NOT_STATED = (
    "EVATok: which videos, clips and I3D its figures are of is not known",
    "FVDCalculator of LARP itself was not at hand; that it is VideoRAE's is not known",
)
UCF101 = PublishedProtocol(
    name="ucf101",
    data="UCF-101, the 9537 videos of its first training list (trainlist01)",
    num_videos=9537,
    clips="random",
    num_frames=16,
    short_side=128,
    interpolation="bilinear",
    enlarge=True,
    crop=128,
    posterior="mode",
    chunk=16,
    values="float",
    metrics=("psnr", "lpips_vgg", "fvd"),
    needs_features=True,
    sources=(
        "github.com/hywang66/LARP, README.md: the command for the rFVD of arXiv 2410.21264, table 1, on "
        "ucf101_train.csv",
        *_LARP_SOURCES,
    ),
    not_stated=_LARP_NOT_STATED,
    deviations=(
        _DECODER,
        "the first frame of a clip is drawn anew in each evaluation; here it depends on the name of the file",
        "the model computes in float16 (`--use_amp`); here in float32",
        "a model that needs more frames than 16 reads more of the video, and its first 16 are measured; here the last "
        "frame is repeated for it, and the 16 are measured",
        "I3D resizes the frames (`resize=True`); here they are resized for it, bilinear",
        "covariances are divided by the number of clips N; here by N - 1, which raises their part of FVD "
        "by 1 / (N - 1)",
        "clips without an error have no largest PSNR; here 100",
    ),
)
KINETICS600 = replace(
    UCF101,
    name="kinetics600",
    data="Kinetics-600, the videos of its validation list (k600_val.csv)",
    num_videos=None,
    sources=(
        "github.com/hywang66/LARP, README.md: k600_val.csv, of which it predicts frames",
        *_LARP_SOURCES,
    ),
    not_stated=(
        "reconstruction of Kinetics-600: LARP gives the rFVD of UCF-101 only; here its evaluator on the other list",
        "how many of the videos were measured: VideoRAE's k600_val.csv names 29740; here those in `data`",
        *_LARP_NOT_STATED,
    ),
)

PROTOCOLS: dict[str, PublishedProtocol] = {
    protocol.name: protocol
    for protocol in (VIDTOK, WF_VAE_25, WF_VAE_33, TOKENBENCH, DAVIS, UCF101, KINETICS600)
}
