"""The processor of a SmolVLM as Hugging Face's files: chat template, images, videos."""

from typing import Any

# The template of the video checkpoints, as in transformers' DEFAULT_CHAT_TEMPLATE.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}"
    "{{ '<video>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def processor_files(
    image_size: int, tokens_per_frame: int, sampling: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return `{file name: contents}`, for a processor that takes each frame as one square image.

    Args:
      image_size: side of the square, in pixels.
      tokens_per_frame: image tokens of one frame.
      sampling: fields that say how the video processor chooses frames.
    """
    side = {"longest_edge": image_size}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 1,  # LANCZOS
        "max_image_size": side,
        "size": side,
        "processor_class": "SmolVLMProcessor",
    }
    return {
        "preprocessor_config.json": {
            **pixels,
            "do_image_splitting": False,
            "image_processor_type": "SmolVLMImageProcessor",
        },
        "video_preprocessor_config.json": {
            **pixels,
            **sampling,
            "video_processor_type": "SmolVLMVideoProcessor",
        },
        "processor_config.json": {
            "image_seq_len": tokens_per_frame,
            "processor_class": "SmolVLMProcessor",
        },
    }
