import disttrain.data
import disttrain.utils.data


def test_it_is_the_same_module_by_another_name():
    assert disttrain.utils.data.__all__ == disttrain.data.__all__
    for name in disttrain.data.__all__:
        assert getattr(disttrain.utils.data, name) is getattr(disttrain.data, name)


def test_the_sampler_is_where_pytorch_has_it():
    from disttrain.utils.data.distributed import DistributedSampler

    assert DistributedSampler is disttrain.data.DistributedSampler
