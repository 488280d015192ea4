# Made by tests/stubs.py; edit the notebooks.
from .data import *
from .editing import *
from .losses import *
from .metrics import *
from .networks import *
from .parameterization import *
from .pretrained import *
from .sampling import *
from .schedules import *
from .trainer import *
from .consistency_training import *
from .improved_consistency_training import *
from .paths import *
from .utils import *
__all__ = ['update_ema_model', 'pad_dims_like', 'replay', 'randn_like', 'default_device', 'write_whole', 'update_ema_model_', 'average_of', 'use_style', 'show_images', 'image_grid', 'to_png', 'karras_schedule', 'timesteps_schedule', 'improved_timesteps_schedule', 'ema_decay_rate_schedule', 'lognormal_probabilities', 'lognormal_timestep_distribution', 'skip_scaling', 'output_scaling', 'input_scaling', 'noise_conditioning', 'ConsistencyFunction', 'consistency_function', 'model_forward_wrapper', 'Precondition', 'gaussian_consistency_function', 'pseudo_huber_loss', 'lpips_network', 'lpips_loss', 'improved_loss_weighting', 'NoiseEmbedding', 'scale_inputs', 'check_inputs', 'embed_labels', 'ResidualLayer', 'MLP', 'group_norm', 'zero_init', 'ResBlock', 'SelfAttention', 'UNet', 'two_moons', 'spiral', 'eight_gaussians', 'load_digits', 'colour_shapes', 'torchvision_dataset', 'ImageFolder', 'read_image', 'measure_sigma_data', 'ideal_denoiser', 'exact_consistency_function', 'add_noise', 'Levels', 'same_noise', 'consistency_pair', 'ConsistencyTrainingOutput', 'Objective', 'squared_error', 'ConsistencyTraining', 'ImprovedConsistencyTraining', 'Operator', 'trajectory', 'ConsistencySamplingAndEditing', 'slerp', 'LUMINANCE', 'editing_sigmas', 'edit', 'inpaint', 'preset_mask', 'outpaint', 'orthogonal_basis', 'colorization', 'colorize', 'super_resolution', 'super_resolve', 'stroke_to_image', 'denoise', 'interpolate_latents', 'feature_statistics', 'frechet_distance', 'Classifier', 'train_classifier', 'recognition_rate', 'inception_features', 'kernel_distance', 'precision_recall', 'consistency_error', 'shard_seed', 'data_order', 'learning_rate', 'RunOptions', 'Trainer', 'new_accelerator', 'TrainingState', 'finish_first', 'write_checkpoint', 'read_checkpoint', 'LossByLevel', 'progress', 'training_figure', 'watch', 'NETWORKS', 'network_config', 'build_network', 'save_pretrained', 'push_to_hub', 'bundled_checkpoints', 'from_pretrained', 'DiffusersUNet', 'from_diffusers']
