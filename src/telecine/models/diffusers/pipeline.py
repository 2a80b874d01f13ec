"""A student in the place of the autoencoder of a diffusers pipeline."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from typing_extensions import Self

from telecine.base.checks import argument_error
from telecine.base.files import write_json
from telecine.models.diffusers.adapter import DiffusersAutoencoder
from telecine.models.latent import MEAN_KEY, STD_KEY
from telecine.models.pretrained import CLASS_KEY, CONFIG_FILE
from telecine.models.student import StudentAutoencoder
from telecine.models.tiles import tiles_of_frame
from telecine.ops.pass_options import clip_position
from telecine.settings import Tiling


class PipelineVAE(ModelMixin, nn.Module):
    """A student of a pipeline's autoencoder, with all that the pipeline uses: `pipe.vae = PipelineVAE(student)`.

    `config` has the sizes and the normalisation of the latent under the names of all classes. A pipeline that is saved
    has the student in its folder `vae`, and loads it again if telecine is installed.

    Args:
        student: A student of the pipeline's autoencoder.
    """

    def __init__(self, student: StudentAutoencoder) -> None:
        super().__init__()
        self.student = student
        self.use_slicing = False
        self.tiling = Tiling()
        config = student.config
        time = config.time_compression
        space = config.spatial_compression
        self.temporal_compression_ratio = time
        self.spatial_compression_ratio = space
        num_downsamplings = space.bit_length() - 1
        num_time_downsamplings = time.bit_length() - 1
        # With diffusers' spelling.
        self.temperal_downsample = [
            level >= num_downsamplings - num_time_downsamplings
            for level in range(num_downsamplings)
        ]
        normalisation = student.latent_normalisation()
        for name in (MEAN_KEY, STD_KEY):  # LTX has buffers
            if normalisation.get(name) is not None:
                self.register_buffer(name, torch.tensor(normalisation[name]), persistent=False)
        mean = normalisation.get(MEAN_KEY)
        std = normalisation.get(STD_KEY)
        if isinstance(mean, list) and isinstance(std, list) and len(mean) > config.latent_channels:
            # Pipelines of Flux 2 read a batch norm of the positions of a patch.
            self.bn = nn.BatchNorm2d(len(mean), eps=0.0, affine=False)
            self.bn.load_state_dict(
                {"running_mean": torch.tensor(mean), "running_var": torch.tensor(std).square()},
                strict=False,
            )
        values = {
            "z_dim": config.latent_channels,
            "latent_channels": config.latent_channels,
            # Pipelines read the length of these.
            "block_out_channels": (1,) * (num_downsamplings + 1),
            "encoder_block_out_channels": (1,) * (num_downsamplings + 1),
            "scale_factor_temporal": time,
            "scale_factor_spatial": space,
            "temporal_compression_ratio": time,
            "spatial_compression_ratio": space,
            "timestep_conditioning": False,
            "batch_norm_eps": 0.0,
            "force_upcast": False,
            "scaling_factor": 1.0,
            **normalisation,
        }
        self.config = FrozenDict(values)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **options: Any) -> Self:
        """Return the student in a folder, in eval mode.

        Args:
            folder: A folder that `save_pretrained` or a run of `telecine distill` wrote.
            options: Those of diffusers. Only `dtype` and its earlier name `torch_dtype` are used.
        """
        student = StudentAutoencoder.from_pretrained(folder, DiffusersAutoencoder.from_pretrained)
        vae = cls(student).eval()
        dtype = options.get("dtype", options.get("torch_dtype"))
        return vae if dtype is None else vae.to(dtype)

    def save_pretrained(self, save_directory: str | PathLike[str], **options: Any) -> None:
        """Write the student, as its own `save_pretrained` does.

        Args:
            save_directory: The folder.
            options: Those of diffusers, which are not used.
        """
        self.student.save_pretrained(save_directory)

    def save_config(self, save_directory: str | PathLike[str], push_to_hub: bool = False) -> None:
        """Write the student's `config.json` without weights.

        Args:
            save_directory: The folder.
            push_to_hub: Not used.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {CLASS_KEY: type(self.student).__name__, **self.student.saved_config(folder)}
        write_json(folder / CONFIG_FILE, config)

    def enable_slicing(self) -> None:
        """Decode the clips of a batch one after the other."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode a whole batch at once."""
        self.use_slicing = False

    def enable_tiling(
        self,
        tile_sample_min_height: int = 256,
        tile_sample_min_width: int = 256,
        tile_sample_stride_height: int = 192,
        tile_sample_stride_width: int = 192,
    ) -> None:
        """Decode frames in tiles that overlap and are blended. Tiles are square, and consist of whole latent cells.

        Args:
            tile_sample_min_height: Height of a tile in pixels. The larger of height and width is used.
            tile_sample_min_width: Width of a tile in pixels.
            tile_sample_stride_height: Rows from one tile to the next. The smaller of both strides is used.
            tile_sample_stride_width: Columns from one tile to the next.

        Raises:
            ValueError: The stride is larger than the tile, or below 1.
        """
        space = self.spatial_compression_ratio
        size = max(tile_sample_min_height, tile_sample_min_width)
        stride = min(tile_sample_stride_height, tile_sample_stride_width)
        if not 0 < stride <= size:
            contract = f"at least 1 and at most the {size} pixels of a tile"
            remedy = "Three quarters of a tile are usual."
            raise argument_error("tile_sample_stride_height", contract, stride, remedy)
        num_cells = -(-size // space)
        num_stride_cells = max(1, stride // space)
        self.tiling = Tiling(num_cells * space, (num_cells - num_stride_cells) * space)

    def disable_tiling(self) -> None:
        """Decode whole frames."""
        self.tiling = Tiling()

    @apply_forward_hook
    def decode(
        self, z: Tensor, temb: None = None, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Return a video or images, as diffusers does.

        Args:
            z: The latent of a video, `(B, C, t, h, w)`, or of images, `(B, C, h, w)`.
            temb: Not used.
            return_dict: Whether the output is a `DecoderOutput`; else it is a tuple.
            generator: Not used.
        """
        is_video = z.ndim == 5
        latents = z if is_video else z[:, :, None]
        parts = latents.split(1) if self.use_slicing else [latents]
        video = torch.cat([self._decode_in_tiles(part) for part in parts])
        sample = video if is_video else video[:, :, 0]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Return what the `encode` of the teacher, a diffusers model, returns.

        Args:
            x: The video, `(B, C, T, H, W)`.
            return_dict: As of the teacher.
        """
        teacher: Any = self.student.encoder_model
        return teacher.module.encode(x.to(teacher.module.dtype), return_dict=return_dict)

    def _decode_in_tiles(self, latent: Tensor) -> Tensor:
        """Return the video of a latent `(B, C, t, h, w)`."""
        space = self.spatial_compression_ratio
        height = latent.shape[3] * space
        width = latent.shape[4] * space
        tiles = list(tiles_of_frame(height, width, self.tiling))
        if len(tiles) == 1:
            return self.student.decode(latent)
        weighted_sum: Tensor | None = None
        total_weight = latent.new_zeros(height, width)
        for rows, columns, tile_weight in tiles:
            part = latent[
                ...,
                rows.start // space : rows.stop // space,
                columns.start // space : columns.stop // space,
            ]
            corner = (rows.start, columns.start)
            with clip_position(frame_size=(height, width), corner=corner):
                tile = self.student.decode(part)
            if weighted_sum is None:
                weighted_sum = tile.new_zeros(*tile.shape[:3], height, width)
            weight = tile_weight.to(tile)
            weighted_sum[..., rows, columns] += weight * tile
            total_weight[rows, columns] += weight
        assert weighted_sum is not None
        return weighted_sum / total_weight
